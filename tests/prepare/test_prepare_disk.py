"""Preparing on a disk that is too small: clear words, and nothing is left, wherever it fills."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.errors import StorageError
from steps.prepare import stage
from steps.prepare.stage import prepare
from steps.protocol.records import BaseModel
from steps.protocol.rundir import RunDir
from steps.settings.plan import Plan
from tests.prepare.prepare_data import PlanMaker, questions, write_lines
from tests.shared.small_disk import PAGE, disk_of


def test_a_disk_that_fills_anywhere_leaves_nothing_and_says_so(
    base: BaseModel, tmp_path: Path, make_plan: PlanMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "ROOM_FACTOR", 0)
    plan = make_plan(write_lines(tmp_path / "questions.jsonl", questions(400)))
    storage = plan.settings.storage.model_copy(update={"min_free_gib": 0})
    plan = plan.model_copy(update={"settings": plan.settings.model_copy(update={"storage": storage})})
    whole = prepare(plan, base, RunDir(tmp_path / "whole"), cache=tmp_path)
    final_pages = sum(-(-path.stat().st_size // PAGE) for path in Path(whole.path).iterdir())
    words: list[str] = []
    for pages in range(1, 3 * final_pages, max(1, final_pages // 6)):
        with disk_of(tmp_path / f"disk-{pages}", pages * PAGE) as disk:
            told = digest_or_words(plan, base, disk, tmp_path)
            words.append(told)
            if told != whole.digest:
                assert "the disk is full: free space there, or set storage.root to another disk" in told
                assert list(disk.iterdir()) == []
    assert words[-1] == whole.digest
    assert sum(told != whole.digest for told in words) >= 6, "it failed while reading and while writing"


def digest_or_words(plan: Plan, base: BaseModel, disk: Path, cache: Path) -> str:
    try:
        return prepare(plan, base, RunDir(disk), cache=cache).digest
    except StorageError as error:
        return str(error)
