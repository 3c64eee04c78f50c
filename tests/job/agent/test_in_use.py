"""Who uses a run directory: judged by the process where it can be seen, by the touch of its file elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from steps.job.agent import in_use as module
from steps.job.agent import processes
from steps.job.agent.in_use import (
    BETWEEN,
    FOLDER,
    HANDOVER_S,
    SILENT_S,
    flows_of,
    in_use,
    is_supervised,
    leave,
    touch,
    users_of,
)
from steps.protocol.rundir import TrainDir, write_json

ELSEWHERE = {"pid": 7, "start": 1, "boot": "another", "pids": "pid:[1]", "node": "node-b"}


@pytest.fixture
def train(tmp_path: Path) -> TrainDir:
    (tmp_path / "7" / "train-abc").mkdir(parents=True)
    return TrainDir(tmp_path / "7" / "train-abc")


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("stage", ["prepare", "train", "merge", "evaluate", "compile"])
def test_a_stage_is_seen_while_it_works_and_not_afterwards(tmp_path: Path, stage: str) -> None:
    with in_use(tmp_path, stage):
        (user,) = users_of(tmp_path)
        assert str(user) == f"{stage} (process {os.getpid()} on {processes.platform.node()})"
    assert users_of(tmp_path) == []


def test_a_killed_stage_uses_nothing_and_the_next_one_removes_what_it_left(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from steps.job.agent.in_use import in_use\n"
        "with in_use(Path(sys.argv[1]), 'merge'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    assert users_of(tmp_path) == []
    with in_use(tmp_path, "merge"):
        assert len(list((tmp_path / FOLDER).iterdir())) == 1


@pytest.mark.parametrize(
    "place",
    [Path(FOLDER, "merge-1.json"), Path("train-abc/supervisor.json"), Path("train-abc/attempts/002/keeper-state.json"),
     Path("train-abc/attempts/002/nodes/001/keeper-state.json")],
    ids=["stage", "supervisor", "keeper", "pod"],
)  # fmt: skip
def test_on_another_machine_the_file_is_touched_for_as_long_as_its_owner_lives(tmp_path: Path, place: Path) -> None:
    write_json(tmp_path / place, {**ELSEWHERE, "what": "merge"})
    age(tmp_path / place, SILENT_S - 30)
    (user,) = users_of(tmp_path)
    assert (user.node, user.pid) == ("node-b", 7)
    age(tmp_path / place, SILENT_S + 30)
    assert users_of(tmp_path) == []


def test_a_container_on_this_machine_is_judged_like_another_machine(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "merge-1.json"
    write_json(path, {**processes.identify(os.getpid()), "pids": "pid:[1]", "start": 1, "what": "merge"})
    assert len(users_of(tmp_path)) == 1
    age(path, SILENT_S + 30)
    assert users_of(tmp_path) == []


def test_a_keeper_that_has_written_how_it_ended_uses_nothing(train: TrainDir) -> None:
    write_json(train.files(1).agent.state, ELSEWHERE)
    assert [user.what for user in users_of(train.path.parent)] == ["workers"]
    write_json(train.attempt(1) / "exit.json", {})
    assert users_of(train.path.parent) == []


def test_a_lock_held_by_anybody_is_a_supervisor_and_asking_needs_only_to_read(train: TrainDir) -> None:
    train.lock.touch()
    train.lock.chmod(0o444)
    train.path.chmod(0o555)
    try:
        assert not is_supervised(train.path)
        train.lock.chmod(0o644)
        with FileLock(train.lock):
            train.lock.chmod(0o444)
            assert is_supervised(train.path)
            assert [str(user) for user in users_of(train.path.parent)] == ["a launcher of train-abc"]
    finally:
        train.path.chmod(0o755)


def test_a_supervisor_of_an_older_version_is_seen_by_its_process(train: TrainDir) -> None:
    old = {key: value for key, value in processes.identify(os.getpid()).items() if key != "pids"}
    write_json(train.holder, old)
    age(train.holder, 10 * SILENT_S)
    assert is_supervised(train.path)
    write_json(train.holder, {**old, "start": 1})
    assert not is_supervised(train.path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "null"])
def test_a_torn_or_foreign_file_is_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "merge-1.json").write_text(text)
    assert users_of(tmp_path) == []


def test_touching_makes_the_file_young_and_brings_back_a_lost_one(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "merge-1.json"
    touch(path, ELSEWHERE)
    assert not path.parent.exists(), "a removed run comes back"
    write_json(path, ELSEWHERE)
    age(path, 1000)
    touch(path, ELSEWHERE)
    assert time.time() - path.stat().st_mtime < 100
    path.unlink()
    touch(path, ELSEWHERE)
    assert json.loads(path.read_text()) == ELSEWHERE


def test_a_long_stage_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    with in_use(tmp_path, "merge"):
        (path,) = (tmp_path / FOLDER).iterdir()
        age(path, 1000)
        until_s = time.monotonic() + 10
        while time.time() - path.stat().st_mtime > 100 and time.monotonic() < until_s:
            time.sleep(0.02)
        assert time.time() - path.stat().st_mtime < 100


def step_of_a_flow(folder: Path, flow: str = "17") -> None:
    """A step in a process of its own, as Metaflow starts it: its parent is this one."""
    program = (
        "import sys; from pathlib import Path; from steps.job.agent.in_use import in_use\n"
        "with in_use(Path(sys.argv[1]), 'prepare', flow=sys.argv[2]): pass"
    )
    subprocess.run([sys.executable, "-c", program, str(folder), flow], check=True)


def test_between_two_steps_the_run_is_kept_for_as_long_as_the_flow_lives(tmp_path: Path) -> None:
    step_of_a_flow(tmp_path)
    (user,) = users_of(tmp_path)
    assert (user.what, user.pid, user.flow) == (BETWEEN, os.getpid(), "17")
    with in_use(tmp_path, "train", flow="17"):
        assert {flow: found.what for flow, found in flows_of(tmp_path).items()} == {"17": "train"}
    (tmp_path / FOLDER / "flow-17.json").unlink()
    program = f"from tests.job.agent.test_in_use import step_of_a_flow as s; from pathlib import Path; s(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", program], check=True)  # a flow that dies behind its first step
    assert users_of(tmp_path) == []


def test_on_another_machine_the_run_is_kept_for_as_long_as_a_pod_may_need_to_come(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "flow-17.json"
    write_json(path, {**ELSEWHERE, "what": BETWEEN, "flow": "17", "silent_s": HANDOVER_S})
    age(path, HANDOVER_S - 60)
    assert [user.flow for user in users_of(tmp_path)] == ["17"]
    age(path, HANDOVER_S + 60)
    assert users_of(tmp_path) == []


def test_the_last_step_of_a_flow_leaves_the_run(tmp_path: Path) -> None:
    step_of_a_flow(tmp_path)
    leave(tmp_path, "17")
    leave(tmp_path, "17")
    assert users_of(tmp_path) == []
