"""`clean` on made-up run directories: what it shows, ends and removes."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steps.cli.clean import remove
from steps.job.agent.agent import DETACHED
from steps.job.agent.in_use import hand_over, in_use
from steps.job.agent.processes import MARKER, identify, marker_of
from steps.job.history import Attempt, History
from steps.protocol.rundir import TrainDir, write_json
from steps.settings.places import project_root
from tests.cli.cli_harness import call, make_run


def start_marked(train: TrainDir) -> subprocess.Popen[bytes]:
    """A process that looks like a worker of the training's first attempt."""
    marker = {MARKER: marker_of(train.path, 1)}
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **marker})


def test_clean_without_yes_shows_and_removes_nothing(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    result = call("clean", "--root", tmp_path)
    assert result.exit_code == 0
    assert f"MiB  {train.path.parent}" in result.output
    assert "Nothing was removed; --yes removes all of this" in result.output
    assert train.checkpoints.is_dir()


def test_clean_with_yes_removes_what_is_old_enough(tmp_path: Path) -> None:
    old, young = make_run(tmp_path, "7", age_days=3), make_run(tmp_path, "8")
    result = call("clean", "--root", tmp_path, "--older-than-days", "2", "--yes")
    assert result.exit_code == 0
    assert "Nothing was removed" not in result.output
    assert not old.path.parent.exists()
    assert young.checkpoints.is_dir()
    assert [path.name for path in (tmp_path / "LoraFlow").iterdir()] == ["8"]


def test_clean_leaves_a_run_with_a_living_supervisor_alone(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    write_json(train.holder, {**identify(os.getpid()), "node": platform.node()})
    said = call("clean", "--root", tmp_path, "--yes").output
    assert f"in use, left alone: {train.path.parent}: the launcher of train-abc (process {os.getpid()} on " in said
    assert train.checkpoints.is_dir()


@pytest.mark.parametrize("place", [".in-use/merge-1.json", "train-abc/supervisor.json"])
def test_clean_leaves_a_run_alone_that_another_host_uses(tmp_path: Path, place: str) -> None:
    run = make_run(tmp_path).path.parent
    write_json(run / place, {**identify(1), "boot": "another", "node": "node-b", "what": "merge"})
    assert "process 1 on node-b" in call("clean", "--root", tmp_path, "--yes").output
    assert run.is_dir()
    os.utime(run / place, (1, 1))
    call("clean", "--root", tmp_path, "--yes")
    assert not run.exists()


@pytest.mark.parametrize("stage", ["prepare", "merge", "evaluate", "compile"])
def test_clean_leaves_a_run_alone_while_a_stage_of_it_works(tmp_path: Path, stage: str) -> None:
    run = make_run(tmp_path).path.parent
    with in_use(run, stage):
        assert f"in use, left alone: {run}: {stage} (process" in call("clean", "--root", tmp_path, "--yes").output
        assert run.is_dir()


def test_clean_leaves_a_run_alone_whose_flow_is_between_two_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path).path.parent
    hand_over(run, "17")
    said = call("clean", "--root", tmp_path, "--yes").output
    assert f"in use, left alone: {run}: a flow that is between two steps (process {os.getppid()} on " in said
    assert run.is_dir()


def test_clean_asks_for_the_config_before_it_removes_a_run_whose_attempt_may_be_on_a_cluster(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    write_json(train.history, History("abc", (Attempt(1, 0.0),)).to_dict())
    said = call("clean", "--root", tmp_path, "--yes").output
    assert "attempt 1 of train-abc is not known to have ended, and may run or wait on a cluster: say --config" in said
    assert train.path.is_dir()
    call("clean", "--root", tmp_path, "--yes", "--config", project_root() / "config" / "local.yaml")
    assert not train.path.exists()


def test_a_training_of_three_days_is_not_older_than_one(tmp_path: Path) -> None:
    train = make_run(tmp_path, age_days=3)
    (train.checkpoints / "just-now").touch()
    call("clean", "--root", tmp_path, "--older-than-days", "1", "--yes")
    assert train.path.is_dir()


def test_clean_finds_processes_through_a_link_to_the_root(tmp_path: Path) -> None:
    train = make_run(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    worker = start_marked(TrainDir(tmp_path / "link" / "LoraFlow" / "7" / "train-abc"))
    try:
        said = call("clean", "--root", tmp_path / "link").output
        assert f"running, no launcher: attempt 1 of {train.path.resolve()}, 1 processes" in said
        assert str(worker.pid) in call("status", "7", "--root", tmp_path / "link").output
    finally:
        worker.kill()
        worker.wait()


def test_clean_leaves_workers_alone_that_a_person_left_running(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    worker = start_marked(train)
    try:
        train.attempt(1).mkdir(parents=True)
        (train.attempt(1) / "lease").write_text(DETACHED)
        write_json(train.files(1).agent.state, identify(worker.pid))
        assert f"running, left running by a person: {train.path}" in call("clean", "--root", tmp_path, "--yes").output
        assert worker.poll() is None
        assert train.path.is_dir()
    finally:
        worker.kill()
        worker.wait()


def test_clean_ends_processes_that_nobody_watches_and_no_others(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    worker = start_marked(train)
    try:
        write_json(train.holder, {**identify(os.getpid()), "node": platform.node()})
        assert f"running, watched: {train.path} (left alone)" in call("clean", "--root", tmp_path, "--yes").output
        assert worker.poll() is None
        train.holder.unlink()
        assert (
            f"running, no launcher: attempt 1 of {train.path}, 1 processes" in call("clean", "--root", tmp_path).output
        )
        assert worker.poll() is None
        assert "  ended, its state is saved" in call("clean", "--root", tmp_path, "--yes").output
        assert worker.wait(10) == -signal.SIGTERM
    finally:
        worker.kill()
        worker.wait()


def test_clean_of_what_was_set_aside_leaves_the_run(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    run = train.path.parent
    complete = list(train.checkpoints.iterdir())
    aside = [
        train.checkpoints / "step-000020.001-01.damaged",
        run / "prepared-x.damaged-2",
        run / ".merged-x.damaged-1",
    ]
    for path in (*aside, run / "merged-damaged"):
        path.mkdir()
    shown = call("clean", "--damaged", "--root", tmp_path).output
    assert all(str(path) in shown and path.is_dir() for path in aside)
    assert str(run / "merged-damaged") not in shown
    call("clean", "--damaged", "--root", tmp_path, "--yes")
    assert not any(path.exists() for path in aside)
    assert list(train.checkpoints.iterdir()) == complete
    assert (run / "merged-damaged").is_dir()


def test_clean_of_nothing_says_so(tmp_path: Path) -> None:
    assert "Nothing was removed" in call("clean", "--root", tmp_path / "none").output


def test_a_removal_leaves_nothing(tmp_path: Path) -> None:
    remove(make_run(tmp_path, "2").path.parent)
    assert list((tmp_path / "LoraFlow").iterdir()) == []
