"""A run directory that people, other programs and broken mounts have been at: a sentence or a recovery, never a surprise."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from steps.errors import JobRetriesExhausted, JobTimeout, LoraFlowError, StorageError
from steps.job import history as memory
from steps.job.lease import Patience, acting
from steps.job.local_jobs import describe
from steps.job.supervise import Outside
from steps.protocol import checkpoints
from steps.protocol.events import EventTail
from steps.protocol.rundir import TrainDir
from tests.cli.cli_harness import call
from tests.job.job_fakes import Attempt, make_job
from tests.job.test_supervise import Stage, fail_with, succeed

LIMITS = {"max_without_progress": 1, "max_attempts": 1, "delay_s": 0.0}


def failed_run(root: Path) -> Stage:
    """A training that failed once, with a checkpoint of step 4, in a run directory below a root."""
    run = root / "LoraFlow" / "7"
    run.mkdir(parents=True)
    stage = Stage(run, fail_with("network", 77, saves=4), retry=LIMITS)
    with pytest.raises(JobRetriesExhausted):
        stage.run()
    return stage


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: max(1, path.stat().st_size // 2)]),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe\x00 garbage\n"),
    "gone": lambda path: path.unlink(),
    "a folder": to_folder,
}


@pytest.mark.whole
@pytest.mark.parametrize("how", DAMAGE)
def test_any_one_file_may_be_damaged_and_a_person_gets_a_result_or_a_sentence(tmp_path: Path, how: str) -> None:
    """Whole trainings, each with another file damaged: the commands print no traceback, and `resume` recovers or says why."""
    whole = failed_run(tmp_path / "whole").job.directory.path.parents[2]
    names = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert len(names) > 10
    for number, name in enumerate(names):
        root = tmp_path / str(number)
        shutil.copytree(whole, root)
        DAMAGE[how](root / name)
        call("status", "7", "--root", root)
        call("clean", "--root", root)
        stage = Stage(root / "LoraFlow" / "7", fail_with("network", 77), succeed, succeed)
        said = ""
        try:
            result = stage.run(retry_permanent=True)
        except LoraFlowError as error:
            said = str(error)
        assert str(root) in said or (result.result_dir / "adapter").read_bytes() == b"learned", (name, said)


@pytest.mark.parametrize("value", [None, "", [], {}, "x", math.nan, math.inf, True, [None], {"a": 1}], ids=repr)
def test_a_history_with_a_value_of_another_type_is_damaged_and_says_so(tmp_path: Path, value: Any) -> None:
    path = failed_run(tmp_path).job.directory.history
    text = path.read_text()
    raw = json.loads(text)
    places = [("attempts",), ("attempts", 0), *(("attempts", 0, key) for key in raw["attempts"][0])]
    for place in [*places, *(("verdict", key) for key in raw["verdict"]), *(("clocks", key) for key in raw["clocks"])]:
        changed = json.loads(text)
        target = changed
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        path.write_text(json.dumps(changed))
        with contextlib.suppress(StorageError):  # of which `load` tells the path
            memory.load(path, "play")
            describe(path.parent)


def outside_of(stage: Stage) -> Outside:
    return Outside(notice=stage.notices.append, clock=stage.clock, wall=stage.clock, sleep=stage.clock.sleep)


def follow(stage: Stage, for_s: float = 5.0) -> None:
    """Wait for the right to act, which another one holds."""
    outside = outside_of(stage)
    with pytest.raises(JobTimeout), acting(stage.job, for_s, outside, Patience(30.0, outside)):
        pass


def test_copies_that_a_person_made_beside_our_files_are_none_of_ours(tmp_path: Path) -> None:
    stage = failed_run(tmp_path)
    directory = stage.job.directory
    for name in ("001-copy", "001.old", "1e3", "١"):
        shutil.copytree(directory.attempt(1), directory.attempts / name)
    for name in ("rank-0-old.log", "rank-0 (1).json", "failure-copy.json", "rank-x.log"):
        (directory.attempt(1) / name).write_text("{}")
    (directory.checkpoints / "step-000009.001-01 (copy)").mkdir()
    (directory.checkpoints / "step-000009.001-01").write_text("a file")
    (directory.checkpoints / "step-000008.001-01").symlink_to(directory.checkpoints / "step-000004.001-01")
    (directory.path / "writers" / "999-x").mkdir(parents=True)
    for words in (("status", "7"), ("clean",), ("cancel", "7")):
        call(*words, "--root", tmp_path)
    assert directory.numbers() == [1]
    assert directory.files(1).logs() == {}
    with FileLock(directory.lock):
        follow(stage)
    assert checkpoints.choose(directory.checkpoints, identity="play").checkpoint.step == 4  # type: ignore[union-attr]
    assert Stage(directory.path.parent, succeed, succeed).run(retry_permanent=True).attempts == 2


def test_who_follows_waits_for_a_mount_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = failed_run(tmp_path)
    read, looks = EventTail.read_new, iter(range(1000))

    def away(tail: EventTail) -> Any:
        if next(looks) in (1, 2):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(tail)

    monkeypatch.setattr(EventTail, "read_new", away)
    with FileLock(stage.job.directory.lock):
        follow(stage)
    assert any("the run directory works again" in line for line in stage.notices)


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """filelock would go on with a file that outlives its owner: after one kill nobody could ever act again."""

    def refuse(*_: Any) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    stage = Stage(tmp_path, succeed)
    with pytest.raises(StorageError, match=r"has no locks .*mountOptions"):
        stage.run()
    assert stage.launcher.calls == []


def test_an_event_file_that_is_cut_off_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = '{{"kind": "step", "time_s": 1, "attempt": 1, "step": {}}}\n'
    path.write_text("".join(line.format(step) for step in range(5)))
    tail = EventTail(path)
    assert len(tail.read_new()) == 5
    path.write_text(line.format(7))
    assert [event.step for event in tail.read_new()] == [7]


def test_a_training_that_is_removed_under_its_launcher_is_not_begun_anew(tmp_path: Path) -> None:
    """Nor written below a place where its file system is not mounted any more: that may come back, and is waited for."""

    def removed(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
            attempt.train(1, 4)
            attempt.save(4)
        if look == 3:
            shutil.rmtree(attempt.job.directory.path)
        if look == 5:
            attempt.end(1)

    stage = Stage(tmp_path, removed, succeed, succeed)
    with pytest.raises(StorageError, match="is gone: it was removed, or its file system is not mounted"):
        stage.run()
    assert stage.launcher.calls == ["create 1"]
    assert not (stage.job.directory.path / "spec.json").exists()


def test_a_mount_that_comes_back_costs_no_attempt(tmp_path: Path) -> None:
    away = tmp_path / "away"

    def unmounted(attempt: Attempt, look: int) -> None:
        path = attempt.job.directory.path
        if look == 0:
            attempt.start()
        if look == 3:
            path.rename(away)
        if look == 200:
            away.rename(path)
        if look == 201:
            attempt.finish()

    stage = Stage(tmp_path, unmounted)
    assert stage.run().attempts == 1
    assert any("is not mounted any more" in line for line in stage.notices)


HOLD = """
import sys, time
from pathlib import Path
from steps.job.job import Outside
from steps.job.lease import Patience, acting
from tests.job.job_fakes import make_job
outside = Outside()
with acting(make_job(Path(sys.argv[1])), 5, outside, Patience(30.0, outside)):
    print("acting", flush=True)
    time.sleep(60)
"""


def test_who_removes_the_lock_file_lets_no_second_launcher_act(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "acting\n"
        stage = Stage(tmp_path)
        stage.job.directory.lock.unlink()
        follow(stage)
    finally:
        first.kill()
        first.wait()
    outside = outside_of(stage)
    with acting(stage.job, 5, outside, Patience(30.0, outside)):
        pass


def test_a_file_where_the_result_has_to_be_is_named_and_not_taken_for_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed, succeed)
    adapter = stage.job.directory.adapter
    adapter.parent.mkdir(parents=True)
    adapter.write_text("a file")
    with pytest.raises(StorageError, match="a file, not a folder: move it away"):
        stage.run()
    adapter.unlink()
    assert (stage.run(retry_permanent=True).result_dir / "adapter").read_bytes() == b"learned"


def test_a_result_whose_files_were_deleted_is_made_again_from_the_last_checkpoint(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed, succeed)
    (stage.run().result_dir / "adapter").unlink()
    result = stage.run(retry_permanent=True)
    assert (result.attempts, (result.result_dir / "adapter").read_bytes()) == (2, b"learned")
    assert stage.steps_seen[-1] == 10


def test_steps_that_no_training_has_harm_no_account(tmp_path: Path) -> None:
    def wild(attempt: Attempt, look: int) -> None:
        attempt.start()
        for step, seconds in ((10**30, 1.0), (-5, -1.0), (3, math.nan), (3, 1e308)):
            attempt.events.emit("step", step, seconds=seconds)
        attempt.finish()

    stage = Stage(tmp_path, wild)
    stage.run()
    json.dumps(stage.history, allow_nan=False)


def test_the_thousandth_attempt_has_a_number_like_any_other(tmp_path: Path) -> None:
    directory = TrainDir(make_job(tmp_path, total_steps=10).directory.path)
    directory.attempt(999).mkdir(parents=True)
    stage = Stage(tmp_path, *[succeed] * 1000)
    stage.run()
    assert [item["number"] for item in stage.history["attempts"]] == [1000]
