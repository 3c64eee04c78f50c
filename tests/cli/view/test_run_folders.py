"""Run directories by the words that a person has for them, and their story."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.cli.view.run_folders import find_run, run_folders, storage_root, story
from steps.errors import StorageError
from steps.settings.places import project_root
from tests.cli.cli_harness import make_run


def test_run_folders_are_the_oldest_first(tmp_path: Path) -> None:
    for run, days in (("1", 1.0), ("2", 5.0), ("3", 3.0)):
        make_run(tmp_path, run, age_days=days)
    (tmp_path / "LoraFlow" / "notes.txt").write_text("")
    found = run_folders(tmp_path, older_than_s=2 * 86400)
    assert [path.name for path in found] == ["2", "3"]


def test_a_relative_root_starts_at_the_project(tmp_path: Path) -> None:
    assert storage_root(".lora") == project_root() / ".lora"
    assert storage_root(str(tmp_path)) == tmp_path


FACTS: dict[str, Any] = {
    "path": "/r/train-a",
    "state": "failed",
    "step": 40,
    "of": 100,
    "complete_step": 30,
    "pids": [11, 12],
    "account": {"total_s": 200.0, "goodput": 0.5},
    "attempts": [
        {"attempt": 1, "class": "hang", "message": "no step for 300 s\nmore"},
        {"attempt": 2, "class": "unknown", "message": ""},
        {"attempt": 3, "class": "succeeded", "message": ""},
    ],
    "verdict": "too often\nEvidence: …",
}


def test_the_story_of_a_training_that_failed() -> None:
    assert story(FACTS) == [
        "/r/train-a",
        "  failed, step 40 of 100, newest complete checkpoint: 30, pids 11, 12",
        "  3 attempts, 3 min 20 s in all, goodput 50%",
        "  attempt 1: hang: no step for 300 s",
        "  attempt 2: unknown",
        "  ended for good: too often",
    ]


def test_a_run_is_found_by_id_by_flow_and_id_and_by_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "7").path.parent
    assert [find_run(tmp_path, given) for given in ("7", "LoraFlow/7", str(folder))] == [folder] * 3
    (tmp_path / "ProbeFlow" / "7").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"say LoraFlow/7 or ProbeFlow/7|say ProbeFlow/7 or LoraFlow/7"):
        find_run(tmp_path, "7")
    with pytest.raises(StorageError, match="no run '70' below"):
        find_run(tmp_path, "70")
