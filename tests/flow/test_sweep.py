"""A sweep: its file, the branches that come of it, the leaderboard; and one whole sweep."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.flow.cards import page
from steps.flow.sweep import board
from steps.flow.sweep.grid import label, read_sweep, varied
from steps.settings.places import config_root
from tests.flow.flow_harness import PROJECT, Place, processes_of, run_id_of, wait_until


def test_a_grid_is_every_combination_and_runs_come_behind_it() -> None:
    branches = read_sweep(
        "options: {model: tiny, max-steps: 4}\n"
        "grid: {learning-rate: [1e-4, 2e-4], lora_rank: [4, 8]}\n"
        "runs: [{method: dora, dataset: [a.jsonl:1, b.jsonl:2]}]"
    )
    assert len(branches) == 5
    assert branches[0] == {"model": "tiny", "max_steps": 4, "learning_rate": "1e-4", "lora_rank": 4}
    assert branches[4] == {"model": "tiny", "max_steps": 4, "method": "dora", "dataset": '["a.jsonl:1", "b.jsonl:2"]'}
    names = varied(branches)
    assert names == ["learning_rate", "lora_rank", "method", "dataset"]
    assert label(branches[1], names) == "learning_rate 1e-4, lora_rank 8"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: {lora_rank: [1", ["sweep: not valid YAML"]),
        ("", ["names nothing that varies"]),
        ("- 1", ["expected a mapping of settings, got list"]),
        ("gird: {}", ["sweep.gird: unknown setting (did you mean 'grid'?)"]),
        ("grid: {lora_rank: 4}", ["sweep.grid.lora_rank"]),
        (
            "options: {learning_rat: 1}\ngrid: {lora_rnk: [1, 2], method: []}\nruns: [{dry_run: true}]",
            ["sweep.options.learning_rat: no such option (did you mean 'learning_rate'", "sweep.grid.lora_rnk",
             "sweep.grid.method: names no value", "sweep.runs[0].dry_run: is for one run"],
        ),
        ("runs: [{lora_rank: 4}, {lora_rank: 4}]", ["the branch lora_rank 4 stands there twice"]),
        (f"grid: {{seed: {list(range(101))}}}", ["has 101 branches, 100 at most"]),
        (  # none of them is made before they are counted
            f"grid: {{seed: {list(range(5000))}, lora_rank: {list(range(5000))}, max_steps: {list(range(5000))}}}",
            ["has 125,000,000,000 branches, 100 at most"],
        ),
    ],
)  # fmt: skip
def test_every_mistake_in_a_sweeps_file_is_told(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(text)
    for word in words:
        assert word in str(caught.value)


def test_the_example_is_a_sweep() -> None:
    assert len(read_sweep((config_root() / "sweeps" / "demo.yaml").read_text())) == 4


def rows_of(*found: tuple[float | None, str]) -> list[dict[str, Any]]:
    branch = {"name": "<b>", "run_dir": "/r", "options": {"model": "tiny"}, "prepared": {"identity": "p"}}
    return [
        board.row(number, branch, {} if failed else {"validation_loss": loss, "last_loss": 2.0, "step": 4}, failed)
        for number, (loss, failed) in enumerate(found)
    ]


def test_the_lowest_validation_loss_is_first_and_what_was_given_up_last() -> None:
    rows = board.rank(rows_of((1.2, ""), (None, "diverged"), (1.1, ""), (None, ""), (float("nan"), "")))
    assert [row["branch"] for row in rows] == [2, 0, 4, 3, 1]
    text = "\n".join(board.lines(rows))
    assert text.index("1.1000") < text.index("1.2000") < text.index("diverged")
    view = board.view(rows, [{"options": {"model": "tiny"}}])
    html = page.body("leaderboard.html", view)
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def sweep_words(*words: str) -> list[str]:
    return [sys.executable, str(PROJECT / "flows" / "sweep_flow.py"), *words]


def saved(runs: Path) -> bool:
    """The second branch has a whole checkpoint."""
    files = runs.glob("*-02/train-*/attempts/*/events.jsonl")
    return any(json.loads(line)["kind"] == "checkpoint" for file in files for line in file.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.timeout(1000)
def test_a_killed_branch_goes_on_alone_and_the_best_one_is_merged(place: Place) -> None:
    place.write_config()
    file = place.folder / "sweep.yaml"
    file.write_text(
        "options: {model: tiny, max_steps: 12, max_rows: 120, sequence_length: 256, global_batch: 4, precision: fp32}\n"
        "grid: {learning_rate: [1e-6, 5e-3]}"
    )
    log = place.folder / "log.txt"
    config = ("--config", "config", str(place.config))
    flow = place.start(sweep_words(*config, "run", "--sweep", str(file), "--max-workers", "1"), log)
    runs = place.folder / "runs" / "SweepFlow"
    wait_until(lambda: saved(runs), timeout_s=300, what="a checkpoint of the second branch")
    os.killpg(flow.pid, signal.SIGKILL)
    for process in processes_of(place.folder):
        process.kill()
    flow.wait()
    first = next(runs.glob("*-01/train-*/adapter/adapter_model.safetensors"))
    written = first.stat().st_mtime_ns
    resumed = place.call(sweep_words("resume", "--origin-run-id", run_id_of(log.read_text())), timeout_s=600)
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    assert "from the checkpoint of step" in resumed.stdout
    assert first.stat().st_mtime_ns == written
    assert re.search(r"the winner: learning_rate 5e-3", resumed.stdout)
    assert len(list(runs.glob("*/prepared-*"))) == 1
    assert [path.parent.name[-3:] for path in runs.glob("*/merged-*")] == ["-02"]
