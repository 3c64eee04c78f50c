"""What runs have left on this machine: processes that nobody watches, and directories with their sizes and histories.

Used by `hyperpod-lora status`, `cancel` and `clean`. `end_running` and `cancel_running` end processes; the rest only reads.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.job import history as memory
from steps.job import progress as deadlines
from steps.job.agent import processes
from steps.job.agent.agent import DETACHED, read_or_empty
from steps.job.agent.in_use import User, is_supervised, workers_of
from steps.job.cancel import is_requested
from steps.job.goodput import account_of
from steps.job.history import History
from steps.protocol import checkpoints
from steps.protocol.events import EventTail
from steps.protocol.rundir import TrainDir, write_json
from steps.protocol.set_aside import NAME
from steps.settings.config import Prices

GRACE_S = 60.0
"""Of an attempt that does not tell its own."""
WORD_S = 10.0
"""Time in which the agent kills what did not end in its grace, and writes how everything ended."""


@dataclass(frozen=True, slots=True)
class RunningJob:
    """The processes of one attempt that live on this machine."""

    directory: Path
    attempt: int
    pids: tuple[int, ...]
    is_watched: bool
    """A supervisor acts on it, wherever it runs."""
    is_detached: bool = False
    """A person left it running, or started it by hand."""


def running_jobs(root: Path) -> list[RunningJob]:
    """All jobs below `root` that have living processes here, found by their marker."""
    by_marker: dict[str, list[int]] = {}
    for pid, marker in processes.find_marked(f"{root.resolve()}{os.sep}").items():
        by_marker.setdefault(marker, []).append(pid)
    found = []
    for marker, pids in sorted(by_marker.items()):
        folder, _, number = marker.rpartition("#")
        if number.isdigit():
            found.append(_running(Path(folder), int(number), pids))
    return found


def _running(directory: Path, attempt: int, pids: list[int]) -> RunningJob:
    lease = TrainDir(directory).files(attempt).lease
    is_detached = lease.is_file() and lease.read_text(errors="replace") == DETACHED
    return RunningJob(directory, attempt, tuple(sorted(pids)), is_supervised(directory), is_detached)


def running_in(directory: Path) -> list[RunningJob]:
    """The jobs of one training directory that have living processes here."""
    return [job for job in running_jobs(directory.parent) if job.directory == directory.resolve()]


def unseen_attempt(directory: Path) -> str:
    """Words about a newest attempt that is not known to have ended, and was not begun on a machine by itself; else empty.

    Its job may wait in a cluster's queue, where no file shows it.
    """
    paths = TrainDir(directory)
    try:
        last = _history(paths).last
    except StorageError:
        return ""
    if last is None or not last.is_open or paths.adapter.is_dir():
        return ""
    if paths.files(last.number).agent.plan.exists():
        return ""
    return (
        f"attempt {last.number} of {directory.name} is not known to have ended, and may run or wait on a cluster: say --config "
        "with the run's config, and it is looked for"
    )


def end_running(job: RunningJob, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """End a job's processes: the agent lets the ranks save; what is left after their time is killed. Returns how many were."""
    grace_s = time_to_save_s(job.directory, job.attempt)
    ask_to_stop(job.directory, job.attempt, grace_s=grace_s, reason="stopped")
    marker = processes.marker_of(job.directory, job.attempt)
    agent = read_or_empty(TrainDir(job.directory).files(job.attempt).agent.state)
    first = [int(agent["pid"])] if agent and processes.is_alive(agent) else processes.marked_with(marker)
    for pid in first:
        processes.send(pid, signal.SIGTERM)
    until_s = time.monotonic() + grace_s + WORD_S
    while processes.marked_with(marker) and time.monotonic() < until_s:
        sleep(0.1)
    left = processes.marked_with(marker)
    for pid in left:
        processes.send(pid, signal.SIGKILL)
    return len(left)


def cancel_running(job: RunningJob, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """End a job because a person wants it: a supervisor that watches starts no further attempt. Returns how many were killed."""
    if job.is_watched:
        grace_s = time_to_save_s(job.directory, job.attempt)
        ask_to_stop(job.directory, job.attempt, grace_s=grace_s, reason="cancelled")
        until_s = time.monotonic() + grace_s + WORD_S
        while processes.marked_with(processes.marker_of(job.directory, job.attempt)) and time.monotonic() < until_s:
            sleep(0.1)
    return end_running(job, sleep=sleep)


def working_elsewhere(directory: Path) -> dict[int, User]:
    """Attempts whose workers live where this process may not signal them: another user's, or on another machine."""
    here = {job.attempt for job in running_in(directory)}
    return {attempt: user for attempt, user in workers_of(directory).items() if attempt not in here}


def time_to_save_s(directory: Path, attempt: int) -> float:
    """Seconds that an attempt's workers have to save: as it was begun with on this machine, longer where its steps are slow."""
    paths = TrainDir(directory)
    plan = read_or_empty(paths.files(attempt).agent.plan)
    return deadlines.time_to_save_s(_progress(paths, attempt), float(plan.get("grace_s", GRACE_S)))


def ask_to_stop(directory: Path, attempt: int, *, grace_s: float, reason: str) -> bool:
    """Ask an attempt's agents; False where that cannot be written (another user's directory): they keep to their own grace."""
    stop = TrainDir(directory).files(attempt).stop
    try:
        if not stop.exists():
            write_json(stop, {"grace_s": grace_s, "reason": reason})
    except (StorageError, OSError):
        return False
    return True


def may_go_on(directory: Path) -> bool:
    """Whether an automatic retry would begin or adopt an attempt: there is no result and no verdict."""
    paths = TrainDir(directory)
    try:
        return not paths.adapter.is_dir() and _history(paths).verdict is None
    except StorageError:  # damaged: no launcher gets past it
        return False


def steps_done(directory: Path) -> int:
    """Steps that the newest attempt has done, saved or not; 0 where its workers have not begun."""
    paths = TrainDir(directory)
    numbers = paths.numbers()
    return _progress(paths, max(numbers)).step if numbers else 0


def _progress(paths: TrainDir, number: int) -> deadlines.Progress:
    progress = deadlines.begin(0.0)
    for event in EventTail(paths.events(number)).read_new():
        progress = deadlines.advance(progress, event, 0.0)
    return progress


def train_directories(root: Path) -> list[Path]:
    """All training directories below `root`: `<flow>/<run>/train-<identity>`."""
    return sorted(path for path in root.glob("*/*/train-*") if path.is_dir())


def describe(directory: Path, prices: Prices | None = None) -> dict[str, Any]:
    """A training's story as plain values: state, attempts, progress, account, size.

    Raises:
        StorageError: its history is damaged.
    """
    paths = TrainDir(directory)
    history = _history(paths)
    last = history.last
    progress = _progress(paths, last.number) if last else deadlines.begin(0.0)
    running = running_in(directory)
    account = account_of(paths, history, prices or Prices(), until_s=_end_s(history)) if last else {}
    return {
        "path": str(directory),
        # Another user's processes, and another machine's, are known by what they leave here.
        "state": _state(paths, history, is_running=bool(running or is_supervised(directory) or workers_of(directory))),
        "is_watched": is_supervised(directory),
        "pids": [pid for job in running for pid in job.pids],
        "step": progress.step,
        "of": progress.of,
        "complete_step": checkpoints.newest_step(paths.checkpoints),
        "verdict": history.verdict.message if history.verdict else "",
        "attempts": [_attempt(item, progress.step) for item in history.to_dict()["attempts"]],
        "account": history.result.get("account") or account,
        "bytes": size_of(directory),
    }


def set_aside_below(root: Path) -> list[Path]:
    """What was found damaged and renamed for a look: checkpoints, prepared data, merged models, evaluations."""
    found = (*root.glob("*/*/*"), *root.glob("*/*/train-*/checkpoints/*"))
    return sorted(path for path in found if NAME.search(path.name) and path.is_dir())


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def _history(paths: TrainDir) -> History:
    return memory.read(paths.history) if paths.history.is_file() else History("")


def _end_s(history: History) -> float:
    last = history.attempts[-1]
    return last.finished_s if last.finished_s is not None else time.time()


def _state(paths: TrainDir, history: History, *, is_running: bool) -> str:
    if paths.adapter.is_dir():
        return "finished"
    if is_running:
        return "running"
    if history.verdict and history.verdict.kind != "cancelled":
        return "failed"
    if history.verdict or is_requested(paths):
        return "cancelled by a person"
    return "stopped" if history.attempts else "new"


def _attempt(item: dict[str, Any], step: int) -> dict[str, Any]:
    """The parts of an attempt that a person asks for."""
    is_open = item["finished_s"] is None
    return {
        "attempt": item["number"],
        "class": item["failure_class"] or ("running" if is_open else "succeeded"),
        "message": item["message"],
        "step": step if is_open else item["step"],
        "complete_step": item["complete_step"],
        "seconds": None if is_open else round(item["finished_s"] - item["created_s"], 1),
    }
