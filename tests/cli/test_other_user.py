"""The commands as a person who may only read: the run is another user's, for real. Needs root, which may become anybody."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.job.agent.processes import MARKER, identify, marker_of
from steps.job.cancel import is_requested
from steps.job.history import Attempt, History
from steps.protocol.rundir import TrainDir, write_json
from tests.cli.cli_harness import make_run
from tests.shared.clean_environment import environment_for

OWNER, STRANGER = 1000, 54321
PROJECT = Path(__file__).resolve().parents[2]


def words_as(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", sys.executable]


def may_become_anybody() -> bool:
    if os.geteuid() or not shutil.which("setpriv"):
        return False
    tried = subprocess.run(
        [*words_as(STRANGER), "-c", "import click, os"], cwd=PROJECT, capture_output=True, check=False
    )
    return tried.returncode == 0


pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(not may_become_anybody(), reason="only root with setpriv, and a Python that all may use"),
]


def own(path: Path, uid: int = OWNER, mode: int = 0o755) -> None:
    """Give a tree to somebody; others may read it."""
    for found in (path, *path.rglob("*")):
        os.chown(found, uid, uid)
        os.chmod(found, mode if found.is_dir() else mode & 0o666)


@pytest.fixture
def root() -> Iterator[Path]:
    """pytest's own folders are for one user only."""
    folder = Path(tempfile.mkdtemp(prefix="other-user-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def call(root: Path, *words: str, uid: int = STRANGER) -> subprocess.CompletedProcess[str]:
    command = [*words_as(uid), "-m", "steps.cli", words[0], *words[1:], "--root", str(root)]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=environment_for(Path("/tmp")),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def start_owned(train: TrainDir, attempt: int = 1) -> subprocess.Popen[bytes]:
    """A process of the owner's that looks like an attempt's agent: it ends when it is asked to by file."""
    stop = train.files(attempt).stop
    program = f"import os, time\nwhile not os.path.exists({str(stop)!r}): time.sleep(0.1)"
    marker = {MARKER: marker_of(train.path, attempt)}
    child = subprocess.Popen([*words_as(OWNER), "-c", program], env={**os.environ, **marker})
    time.sleep(1.0)
    write_json(train.files(attempt).agent.state, identify(child.pid))
    write_json(train.files(attempt).agent.plan, {"grace_s": 5.0})
    write_json(train.history, History("abc", (Attempt(1, time.time()),)).to_dict())
    return child


@pytest.fixture
def alive(root: Path) -> Iterator[tuple[TrainDir, subprocess.Popen[bytes]]]:
    """A run of the owner's whose workers live, and nobody watches over them."""
    train = make_run(root)
    child = start_owned(train)
    own(root)
    yield train, child
    child.kill()
    child.wait()


def test_status_tells_a_stranger_what_runs(root: Path, alive: tuple[TrainDir, subprocess.Popen[bytes]]) -> None:
    assert "running" in call(root, "status").stdout
    assert "running, step" in call(root, "status", "7").stdout


def test_clean_leaves_alone_what_runs_and_says_whose_it_is_when_it_may_not_be_removed(
    root: Path, alive: tuple[TrainDir, subprocess.Popen[bytes]]
) -> None:
    train, child = alive
    said = call(root, "clean", "--yes").stdout
    assert f"in use, left alone: {train.path.parent}: workers (process {child.pid} on " in said
    child.kill()
    child.wait()
    train.history.unlink()
    done = call(root, "clean", "--yes")
    assert done.returncode == 1
    assert "no permission: make it writable for this user" in done.stderr
    assert f"of user {OWNER}" in done.stderr
    assert train.checkpoints.is_dir()


def test_cancel_by_a_stranger_who_may_only_read_says_how_to_end_it(
    root: Path, alive: tuple[TrainDir, subprocess.Popen[bytes]]
) -> None:
    _train, child = alive
    done = call(root, "cancel", "7", "--yes")
    assert done.returncode == 1
    assert "the request cannot be left there" in done.stdout
    assert (
        f"goes on: nothing of it could be ended by this user; say the same as its user: `sudo -u '#{OWNER}'"
        in done.stderr
    )
    assert child.poll() is None
    (printed,) = re.findall(r"`sudo -u '#1000' \S*hyperpod-lora ([^`]*)`", done.stderr)
    as_owner = [*words_as(OWNER), "-m", "steps.cli", *shlex.split(printed)]
    helped = subprocess.run(
        [*as_owner, "--yes"],
        cwd=PROJECT,
        env=environment_for(Path("/tmp")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert helped.returncode == 0, helped.stdout + helped.stderr
    assert child.wait(20) is not None


def test_cancel_by_a_stranger_who_may_write_there_is_heard_by_the_agent(
    root: Path, alive: tuple[TrainDir, subprocess.Popen[bytes]]
) -> None:
    train, child = alive
    own(root, mode=0o777)
    done = call(root, "cancel", "7", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"attempt 1, workers (process {child.pid} on " in done.stdout
    assert child.wait(10) == 0
    assert json.loads(train.files(1).stop.read_text())["reason"] == "cancelled"
    assert is_requested(train)
    assert "cancelled by a person" in call(root, "status", "7").stdout


def test_a_supervisor_of_another_user_hears_no_false_promise(root: Path) -> None:
    train = make_run(root)
    write_json(train.holder, {**identify(os.getpid()), "what": "supervisor"})
    own(root)
    done = call(root, "cancel", "7", "--yes")
    assert done.returncode == 1
    assert "begins no further attempt" not in done.stdout


def test_a_run_that_may_not_even_be_read_is_named_and_the_others_are_shown(root: Path) -> None:
    make_run(root, "7")
    hidden = make_run(root, "8")
    own(root)
    hidden.path.chmod(0o700)
    done = call(root, "status")
    assert done.returncode == 0
    assert "Permission denied" in done.stdout
    assert "7 " in done.stdout
    told = call(root, "status", "8")
    assert told.returncode == 1
    assert f"of user {OWNER}" in told.stderr


def test_root_cancels_for_the_owner_and_leaves_nothing_that_the_owner_cannot_remove(
    root: Path, alive: tuple[TrainDir, subprocess.Popen[bytes]]
) -> None:
    train, child = alive
    done = subprocess.run(
        [sys.executable, "-m", "steps.cli", "cancel", "7", "--yes", "--root", str(root)],
        *(),
        cwd=PROJECT,
        env=environment_for(Path("/tmp")),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert child.wait(20) is not None
    removed = subprocess.run([*words_as(OWNER), "-c", f"import os; os.unlink({str(train.cancel)!r})"], check=False)
    assert removed.returncode == 0
