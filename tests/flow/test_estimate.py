"""The plan in one line, and what is remembered for the next one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps import machine
from steps.flow.estimate import (
    FILE,
    Pace,
    plan_line,
    recall,
    remember,
    remember_after,
    share_of,
    slower_now,
    start_s,
    tokens_of_run,
)
from steps.protocol.events import EventWriter
from steps.settings.plan import Plan
from tests.shared.sample_records import BASE, plan_of, prepared_of

ACCOUNT = {"productive_s": 12.0, "total_s": 20.0, "queue_s": 3.0, "idle_s": 1.0, "attempts": 1}
PACE = Pace(2000.0, 4.0)


def test_without_an_earlier_training_the_time_is_unknown_and_not_guessed(tmp_path: Path) -> None:
    plan = plan_of()
    line = plan_line(plan, BASE, prepared_of(global_batch=plan.training.global_batch), cache=tmp_path)
    assert line.startswith(
        f"plan: 30 steps of {plan.training.global_batch} rows (1 process × {plan.accumulation} accumulated × "
    )
    assert "time: unknown, this model has not been trained here with this layout yet" in line


def test_the_plan_says_how_many_samples_are_measured_and_what_they_can_tell() -> None:
    best = {"validation": {"keep": "best"}}
    for plan, held_out, words in (
        (plan_of(), 512, "; 128 held-out samples to measure (± 10 points at 95 %)"),
        (plan_of({"evaluation": {"max_rows": 500}}), 512, "; 500 held-out samples to measure (± 5 points at 95 %)"),
        (plan_of(best), 40, "; 20 held-out samples to measure (± 25 points at 95 %)"),
        (plan_of(), 1, "; 1 held-out sample to measure (± 100 points at 95 %)"),
    ):
        assert words in plan_line(plan, BASE, prepared_of(validation_samples=held_out), cache=Path("/nowhere"))


def test_the_speed_of_the_last_training_gives_time_and_cost(tmp_path: Path) -> None:
    plan = plan_of({"prices": {"node_hour": 36.0, "currency": "EUR"}})
    prepared = prepared_of()
    assert tokens_of_run(prepared) == 24_000
    remember(plan, BASE, ACCOUNT, prepared, cache=tmp_path)
    assert recall(plan, BASE, cache=tmp_path) == PACE
    line = plan_line(plan, BASE, prepared, cache=tmp_path)
    assert "about 16 s of training at the 2,000 tokens/s of the last time, 0.16 EUR, then merge and evaluation" in line
    assert "EUR" not in plan_line(plan_of(), BASE, prepared, cache=tmp_path)


def test_merge_and_evaluation_count_once_they_were_measured_with_this_data(tmp_path: Path) -> None:
    plan, prepared = plan_of(), prepared_of()
    remember(plan, BASE, ACCOUNT, prepared, cache=tmp_path)
    remember_after(plan, prepared, {"merge": 10.0, "evaluate": 64.0}, cache=tmp_path)
    assert plan_line(plan, BASE, prepared, cache=tmp_path).endswith(", 1 min 30 s with merge and evaluation")
    other = replace(prepared, digest="e" * 64)
    assert plan_line(plan, BASE, other, cache=tmp_path).endswith("have not been measured with this data yet")


def finished(folder: Path, **data: float) -> Path:
    EventWriter(folder / "events.jsonl", attempt=1, stream=io.StringIO()).emit("finished", 3, **data)
    return folder / "events.jsonl"


def test_a_run_beside_other_work_tells_how_long_the_next_takes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "GPU_FILES", ())
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 1.0, 1.0))
    plan, prepared = plan_of(), prepared_of()
    share = share_of(finished(tmp_path, seconds=100.0, processor_s=34.0), plan)
    assert share == 0.17
    remember(plan, BASE, ACCOUNT, prepared, cache=tmp_path, share=share)
    pace = recall(plan, BASE, cache=tmp_path)
    assert pace == replace(PACE, share=0.17)
    assert slower_now(pace, plan) == pytest.approx(0.2)
    assert slower_now(pace, plan, load=9.0, cores=2) == pytest.approx(1.0)
    line = plan_line(plan, BASE, prepared, cache=tmp_path)
    assert (
        "about 3 s of training at the 2,000 tokens/s of the last time, when the machine was more busy than now" in line
    )
    assert slower_now(PACE, plan, load=99.0) == 1.0
    assert share_of(finished(tmp_path, seconds=10.0, processor_s=34.0), plan) == 0.85
    assert share_of(tmp_path / "none", plan) == 0.0
    monkeypatch.setattr(machine, "GPU_FILES", (tmp_path,))
    assert share_of(tmp_path / "events.jsonl", plan) == 0.0


def test_the_steps_processes_take_as_long_to_start_as_this_one() -> None:
    code = "import time; time.sleep(0.5); from steps.flow.estimate import start_s; print(start_s())"
    told = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 4 * 0.5 < told < 4 * 60
    assert 0 <= start_s() <= 4 * 60


def test_a_pace_that_an_older_version_kept_is_still_known(tmp_path: Path) -> None:
    remember(plan_of(), BASE, ACCOUNT, prepared_of(), cache=tmp_path)
    [key] = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({key: 1500.0}))
    assert recall(plan_of(), BASE, cache=tmp_path) == Pace(1500.0)
    (tmp_path / FILE).write_text(json.dumps({key: "fast"}))
    assert recall(plan_of(), BASE, cache=tmp_path) is None


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"processes": 2}, id="processes"),
        pytest.param({"precision": "fp32"}, id="precision"),
        pytest.param({"lora_rank": 3}, id="rank"),
        pytest.param({"sequence_length": 77}, id="length"),
        pytest.param({"packing": "on"}, id="packing"),
    ],
)
def test_another_layout_has_a_speed_of_its_own(tmp_path: Path, other: dict[str, Any]) -> None:
    plan: Plan = plan_of(precision="bf16")
    remember(plan, BASE, ACCOUNT, prepared_of(), cache=tmp_path)
    assert recall(plan_of(**{"precision": "bf16", **other}), BASE, cache=tmp_path) is None
    assert recall(plan, replace(BASE, digest="c" * 64), cache=tmp_path) is None
    remember(plan_of(**{"precision": "bf16", **other}), BASE, {"productive_s": 6.0}, prepared_of(), cache=tmp_path)
    assert recall(plan, BASE, cache=tmp_path) == PACE


@pytest.mark.parametrize(
    "account",
    [
        pytest.param({}, id="empty"),
        pytest.param({"productive_s": 0.0, "attempts": 1}, id="nothing-productive"),
        pytest.param({"productive_s": None}, id="none"),
        pytest.param({"productive_s": 12.0, "attempts": 3}, id="several-attempts"),
    ],
)
def test_a_training_that_teaches_nothing_is_not_remembered(tmp_path: Path, account: dict[str, Any]) -> None:
    remember(plan_of(), BASE, account, prepared_of(), cache=tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_damaged_memory_is_no_memory_and_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    assert recall(plan_of(), BASE, cache=tmp_path) is None
    remember(plan_of(), BASE, ACCOUNT, prepared_of(), cache=tmp_path)
    assert recall(plan_of(), BASE, cache=tmp_path) == PACE


def test_data_without_rows_has_no_tokens() -> None:
    assert tokens_of_run(prepared_of(rows=0, tokens=0)) == 0
