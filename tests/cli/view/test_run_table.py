"""The table of `status`: what each column says, and what it says when nothing is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steps.cli.view.run_table import local_table, row, table

FACTS: dict[str, Any] = {"state": "finished", "step": 30, "of": 30, "account": {"goodput": 0.674}}


def training(root: Path, run: str = "17") -> Path:
    folder = root / "LoraFlow" / run / "train-abc"
    (folder / "adapter").mkdir(parents=True)
    return folder


def test_a_finished_training_is_told_in_one_line(tmp_path: Path) -> None:
    path = training(tmp_path)
    (path.parent / "plan.json").write_text(
        json.dumps({"plan": {"model": {"name": "tiny"}, "dataset": {"name": "orders"}}})
    )
    (path / "adapter" / "training.json").write_text(json.dumps({"validation_loss": 0.02483}))
    (path.parent / "evaluation-1").mkdir()
    (path.parent / "evaluation-1" / "report.json").write_text(json.dumps({"tuned_score": 0.96875}))
    now_s = path.stat().st_mtime + 7500
    assert row(path, FACTS, now_s=now_s) == (
        *("17", "tiny", "orders", "finished", "30/30", "0.0248", "96.9%", "2 h 05 min", "67%"),
    )


def test_what_is_not_known_yet_is_a_dash(tmp_path: Path) -> None:
    path = training(tmp_path)
    (path.parent / "plan.json").write_text("{")
    facts = {"state": "running", "step": 0, "of": 0, "account": None}
    assert row(path, facts, now_s=path.stat().st_mtime)[1:] == (*("–", "–", "running", "0/?", "–", "–", "0 s", "–"),)


def test_columns_are_as_wide_as_they_have_to_be_and_control_no_terminal() -> None:
    lines = table([("17", "tiny\x1b[2J", "orders", "finished", "3/3", "–", "–", "4 s", "–")])
    assert lines[0].startswith("run  model     data    state     step")
    assert lines[1].startswith("17   tiny␛[2J  orders  finished  3/3")


def test_a_damaged_history_is_named_below_the_table(tmp_path: Path) -> None:
    good, bad = training(tmp_path, "17"), training(tmp_path, "18")
    (bad / "history.json").write_text("{")
    lines = local_table([good, bad])
    assert lines[1].startswith("17 ")
    assert any(line.startswith(f"{bad}: ") for line in lines)
