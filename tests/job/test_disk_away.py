"""A run directory that fails for a while ends nothing; workers that see other files than the launcher are found out."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from steps.errors import StorageError
from steps.job import history as memory
from steps.job.history import History
from steps.job.supervise import JobResult, Outside, supervise
from tests.job.job_fakes import Attempt
from tests.job.test_supervise import Stage, fail_with, succeed


def run(stage: Stage, *, lease_s: float = 60.0) -> JobResult:
    return supervise(
        stage.job,
        stage.launcher,
        stage.settings,
        Outside(notice=stage.notices.append, clock=stage.clock, wall=stage.clock, sleep=stage.clock.sleep),
        lease_s=lease_s,
    )


def break_file(name: str, *, looks: range) -> Callable[[Attempt, int], None]:
    """An attempt during which one of its files cannot be used: a folder stands in its place."""

    def script(attempt: Attempt, look: int) -> None:
        path = attempt.job.directory.attempt(attempt.number) / name
        if look == looks.start:
            path.rename(path.with_name("kept"))
            path.mkdir()
        if look == looks.stop:
            path.rmdir()
            path.with_name("kept").rename(path)
            succeed(attempt, 0)
            succeed(attempt, 1)

    return script


@pytest.mark.parametrize("name", ["lease", "events.jsonl"])
def test_a_file_that_fails_for_less_than_half_a_lease_ends_nothing_and_is_told(tmp_path: Path, name: str) -> None:
    stage = Stage(tmp_path, break_file(name, looks=range(5, 45)), deadlines={"startup_s": 1000})
    assert run(stage).attempts == 1
    assert "tried again until half of the lease (30 s) is gone" in stage.notices[0]
    assert "the run directory works again after" in stage.notices[1]


@pytest.mark.parametrize("name", ["lease", "events.jsonl"])
def test_a_file_that_fails_for_longer_ends_the_launcher_and_says_why(tmp_path: Path, name: str) -> None:
    stage = Stage(tmp_path, break_file(name, looks=range(5, 5000)), deadlines={"startup_s": 1000})
    begun_s = stage.clock()
    with pytest.raises(StorageError, match="half of the lease, 30 s, is gone; the workers save and end themselves"):
        run(stage)
    assert 30 < stage.clock() - begun_s < 60
    assert stage.history["verdict"] is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_what_is_written_down_waits_for_a_disk_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stage, save = Stage(tmp_path, succeed), memory.save
    failures = [number] * 20

    def failing(path: Path, history: History) -> None:
        if failures:
            raise StorageError(f"writing {path}: away") from OSError(failures.pop(), "away")
        save(path, history)

    monkeypatch.setattr(memory, "save", failing)
    assert run(stage).attempts == 1
    assert "tried again until" in stage.notices[0]


def test_a_full_disk_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, succeed)

    def failing(path: Path, history: History) -> None:
        raise StorageError(f"writing {path}: the disk is full") from OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(memory, "save", failing)
    with pytest.raises(StorageError, match="the disk is full"):
        run(stage)


def begin_at(step: int, **told: object) -> Callable[[Attempt, int], None]:
    """An attempt whose workers begin at a step, whatever is there."""

    def script(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.events.emit("started", step, of=10, **told)
        if look == 4:
            attempt.done = step
            attempt.train(step + 1, 10)
            attempt.finish()

    return script


def test_workers_that_begin_anew_although_a_checkpoint_is_whole_are_a_storage_failure(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("node", 75, saves=4), begin_at(0), succeed)
    assert run(stage).attempts == 3
    second = stage.history["attempts"][1]
    assert second["failure_class"] == "storage"
    assert "begin at step 0, although the checkpoint of step 4 is complete" in second["message"]


def test_workers_that_say_what_they_passed_over_are_believed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("node", 75, saves=4), begin_at(0, passed_over=["it does not fit"]))
    assert run(stage).attempts == 2


def test_a_checkpoint_that_the_workers_set_aside_is_no_contradiction(tmp_path: Path) -> None:
    def set_aside_and_begin(attempt: Attempt, look: int) -> None:
        if look == 0:
            (found,) = attempt.job.directory.checkpoints.iterdir()
            found.rename(found.with_name(f"{found.name}.damaged"))
        begin_at(0)(attempt, look)

    stage = Stage(tmp_path, fail_with("node", 75, saves=4), set_aside_and_begin)
    assert run(stage).attempts == 2


def test_what_is_kept_is_what_is_there_when_it_is_said(tmp_path: Path) -> None:
    def lose_it(attempt: Attempt, look: int) -> None:
        for found in attempt.job.directory.checkpoints.iterdir():
            found.rename(found.with_name("gone"))
        fail_with("user", 64)(attempt, look)

    stage = Stage(tmp_path, fail_with("node", 75, saves=4), lose_it)
    with pytest.raises(Exception, match="no checkpoint was complete yet"):
        run(stage)
