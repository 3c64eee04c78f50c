"""Who uses a run directory: told by files that every machine which sees the directory can judge.

A stage holds a file in `<run>/.in-use/`, a supervisor `<training>/supervisor.json`, an agent the `keeper-state.json` of its
attempt. Each holds its owner's identity, and its owner touches it every `BEAT_S`. Where the owner's processes can be seen
(same boot, same PID namespace), the process itself is the answer; elsewhere a file untouched for `SILENT_S` has no owner any
more, by the file system's own clock. A supervisor's lock is looked at as well. Nothing here needs more than permission to read.

Between two steps no process of a flow is at work on the run: what the last one leaves there speaks for the process that starts
the next one, or, where that cannot be seen, for as long as a pod may need to come (`HANDOVER_S`). The last step removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.job.agent import processes
from steps.job.agent.agent import BEAT_S
from steps.protocol.rundir import AttemptDir, TrainDir, write_json

FOLDER = ".in-use"
SILENT_S = 180.0
"""Twelve beats, and longer than any NFS client keeps a file's old time (60 s)."""
HANDOVER_S = 3600.0
"""From the end of a step to the beginning of the next, where steps are pods: a place is found, an image is pulled."""
BETWEEN = "a flow that is between two steps"
REMOVAL = "a removal by `hyperpod-lora clean`"
PATIENCE_S = 5.0
"""How long a stage waits for a removal to withdraw, which began in the same moment and sees the stage."""


@dataclass(frozen=True, slots=True)
class User:
    """One process that uses a run directory."""

    what: str
    """merge, evaluate, the launcher of train-1a2b …"""
    node: str = ""
    pid: int = 0
    flow: str = ""
    """Run id of the flow that it belongs to; empty: of none, or of an older version's."""

    def __str__(self) -> str:
        return f"{self.what} (process {self.pid} on {self.node})" if self.pid else self.what


@contextlib.contextmanager
def in_use(run: Path, what: str, *, flow: str = "") -> Iterator[None]:
    """Show everybody that `what` uses this run directory, until the block ends or this process dies.

    `flow`: run id of the flow that it is a step of; it keeps the run until its next step (see `hand_over`).

    Raises:
        StorageError: the directory cannot be written, is gone, or is being removed.
    """
    if not run.is_dir():  # else it would be made again, empty
        raise StorageError(f"{run} is gone, and {what} needs what was in it: was it removed (`hyperpod-lora clean`)?")
    _sweep(run / FOLDER)
    with held(run / FOLDER / f"{what}-{uuid.uuid4().hex[:8]}.json", what, flow=flow):
        _require_kept(run, what)
        try:
            yield
        finally:
            if flow:
                hand_over(run, flow)


def _require_kept(run: Path, what: str) -> None:
    """Asked once we are seen: of a stage and a removal that begin together, at least one sees the other, and goes no further.

    Raises:
        StorageError: the run is being removed.
    """
    until_s = time.monotonic() + PATIENCE_S
    while removal := next((user for user in users_of(run) if user.what == REMOVAL), None):
        if time.monotonic() >= until_s:
            raise StorageError(f"{run} is being removed: {what} cannot begin beside {removal}")
        time.sleep(0.05)
    if not run.is_dir():
        raise StorageError(f"{run} was removed by `hyperpod-lora clean` while {what} began")


def in_removal(run: Path) -> contextlib.AbstractContextManager[None]:
    """Show everybody that this process is about to remove a run directory; whoever then sees another user withdraws.

    Raises:
        StorageError: the directory cannot be written, so it cannot be removed either.
    """
    return held(run / FOLDER / f"removal-{uuid.uuid4().hex[:8]}.json", REMOVAL)


def hand_over(run: Path, flow: str) -> None:
    """The flow's present step is over: keep the run for the next one. Where that cannot be written, nothing is lost but this."""
    record = {**processes.identify(os.getppid()), "what": BETWEEN, "flow": flow, "silent_s": HANDOVER_S}
    with contextlib.suppress(StorageError, OSError):
        write_json(_between(run, flow), record)


def leave(run: Path, flow: str) -> None:
    """The flow's last step is over."""
    with contextlib.suppress(OSError):  # it is silent from now on, which says the same
        _between(run, flow).unlink(missing_ok=True)


def _between(run: Path, flow: str) -> Path:
    return run / FOLDER / f"flow-{flow}.json"


@contextlib.contextmanager
def held(path: Path, what: str, *, flow: str = "") -> Iterator[None]:
    """Hold one such file: written at the beginning, touched every `BEAT_S` by a thread, removed at the end.

    Raises:
        StorageError: it cannot be written.
    """
    record = {**processes.identify(os.getpid()), "what": what, **({"flow": flow} if flow else {})}
    write_json(path, record)
    stop = threading.Event()
    threading.Thread(target=_beat, args=(path, record, stop), daemon=True, name="in-use").start()
    try:
        yield
    finally:
        stop.set()
        with contextlib.suppress(OSError):  # it is silent from now on, which says the same
            path.unlink(missing_ok=True)


def _beat(path: Path, record: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        touch(path, record)


def touch(path: Path, record: dict[str, Any]) -> None:
    """Say that its owner lives; a file system that is away, or a directory that is gone, is not this one's matter."""
    with contextlib.suppress(OSError, StorageError):
        if path.exists():
            os.utime(path)  # without times: the file system's own clock
        elif path.parent.is_dir():
            write_json(path, record)


def _sweep(folder: Path) -> None:
    """Remove what killed owners left."""
    now_s = now_on(folder)
    for path in folder.glob("*.json"):
        if _user(path, now_s) is None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def users_of(run: Path) -> list[User]:
    """Every living user of a run directory: stages, supervisors, and the workers' agents."""
    now_s = now_on(run)
    files = [*run.glob(f"{FOLDER}/*.json"), *_agents(run)]
    found = [user for path in sorted(files) if (user := _user(path, now_s))]
    trainings = sorted(path for path in run.glob("*") if TrainDir(path).holder.exists() or TrainDir(path).lock.exists())
    return [*found, *(user for path in trainings if (user := supervisor_of(path)))]


def flows_of(run: Path) -> dict[str, User]:
    """The flows that are at work on a run directory, by run id, with what they do."""
    between_last = sorted(users_of(run), key=lambda user: user.what != BETWEEN)
    return {user.flow: user for user in between_last if user.flow}


def supervisor_of(training: Path) -> User | None:
    """The supervisor that acts on a training, here or on another machine; None if there is none."""
    found = _user(TrainDir(training).holder, now_on(training))
    if found:
        return User(f"the launcher of {training.name}", found.node, found.pid)
    return User(f"a launcher of {training.name}") if _is_locked(TrainDir(training).lock) else None


def is_held_beside(holder: Path) -> bool:
    """Whether another process that can be seen from here is the supervisor, and lives."""
    try:
        record = json.loads(holder.read_bytes())
        is_other = int(record["pid"]) != os.getpid()
        return is_other and processes.is_visible(record) and processes.is_alive(record)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_supervised(training: Path) -> bool:
    """Does a supervisor act on this training, here or on another machine?"""
    return supervisor_of(training) is not None


def workers_of(training: Path) -> dict[int, User]:
    """Living agents of a training, here or on another machine, by attempt."""
    now_s, found = now_on(training), {}
    for number in TrainDir(training).numbers():
        files = [agent.state for agent in TrainDir(training).files(number).agents() if not agent.exit.exists()]
        if user := next((user for file in files if (user := _user(file, now_s))), None):
            found[number] = user
    return found


def _agents(run: Path) -> list[Path]:
    """State files of the agents whose attempts have not ended, on this machine and in pods."""
    agents = (agent for path in run.glob("*/attempts/*") for agent in AttemptDir(path).agents())
    return [agent.state for agent in agents if agent.state.exists() and not agent.exit.exists()]


def _user(path: Path, now_s: float) -> User | None:
    """The living owner of a file."""
    try:
        with path.open(encoding="utf-8") as file:  # opening asks an NFS server anew
            record, touched_s = json.load(file), os.fstat(file.fileno()).st_mtime
        told = (str(record.get("what") or "workers"), str(record.get("node", "")), int(record["pid"]))
        user = User(*told, flow=str(record.get("flow", "")))
        silent_s = float(record.get("silent_s", SILENT_S))
        is_alive = processes.is_alive(record) if processes.is_visible(record) else now_s - touched_s < silent_s
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return user if is_alive else None


def _is_locked(path: Path) -> bool:
    """Whether a supervisor's lock is held; asked for by a shared lock, which needs permission to read only."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: the beats alone tell
        return False
    finally:
        os.close(descriptor)
    return False


def now_on(folder: Path) -> float:
    """The time on the file system's clock, where it may be asked; else on ours."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b".")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
