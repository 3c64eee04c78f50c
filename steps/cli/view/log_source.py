"""A rank's log, from its pod or from the run directory, once or as it grows. Called by `look`.

Following goes on into the next attempt. Every wait has an end: a run that brings no further attempt is left after `NEXT_S`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from steps.cli.view.cluster_jobs import SeenJob, lines_of_rank
from steps.errors import ClusterError, StorageError
from steps.flow.terminal import ProgressPrinter, seconds_in_words
from steps.job.snapshot import Phase
from steps.protocol.events import PREFIX, parse_line
from steps.protocol.rundir import TrainDir

POLL_S = 2.0
FILE_POLL_S = 0.5
NEXT_S = 120.0
"""An attempt that has ended may be followed by another within this time; `retry.max_delay_s` can be longer."""
START_S = 1800.0
"""How long a pod that has not begun is waited for; the same command waits again."""
Say = Callable[[str], object]


class PodLogs(Protocol):
    """The part of `client.Kube` that this needs."""

    def log(self, pod: str, *, lines: int) -> str:
        """The end of a pod's log."""
        ...

    def follow_log(self, pod: str, *, lines: int) -> Iterator[str]:
        """A pod's log as it grows."""
        ...


def worded(lines: Iterable[str], *, is_raw: bool) -> Iterator[str]:
    """The lines as a person reads them: an event becomes a sentence, or nothing."""
    printer = ProgressPrinter(every_s=0.0)
    for line in lines:
        event = None if is_raw or not line.startswith(PREFIX) else parse_line(line)
        if event is None:
            yield line
        elif sentence := printer.line(event):
            yield sentence


def pod_lines(source: PodLogs, job: SeenJob, rank: int, *, lines: int) -> list[str]:
    """The last lines of a rank in its pod's log."""
    text = source.log(job.pod(rank), lines=lines * job.processes)
    return list(lines_of_rank(text.splitlines(), rank, job.processes))[-lines:]


def follow_pods(
    source: PodLogs,
    newest: Callable[[], SeenJob | None],
    rank: int,
    *,
    lines: int,
    note: Say,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """A rank's lines as they come, over all attempts from the newest on. `note` hears what is waited for.

    Raises:
        ClusterError: the API went away.
    """
    seen, noted, since_s = "", "", clock()
    while True:
        job = newest()
        if job and job.has_log(rank) and job.name != seen:
            note(f"attempt {job.attempt}: pod {job.pod(rank)}")
            stream = source.follow_log(job.pod(rank), lines=lines * job.processes)
            yield from lines_of_rank(stream, rank, job.processes)
            seen, since_s = job.name, clock()
            continue
        if seen and job and job.snapshot.phase is Phase.SUCCEEDED:
            return
        waits = _waits(job, seen)
        if waits != noted:
            noted = waits
            note(waits)
        if clock() - since_s > (NEXT_S if seen else START_S):
            note(f"nothing more came for {seconds_in_words(clock() - since_s)}; `status` tells what became of the run")
            return
        sleep(POLL_S)


def _waits(job: SeenJob | None, seen: str) -> str:
    if job is None:
        return "the job is gone: it ended, or the next attempt is about to begin"
    if job.name == seen:
        return f"attempt {job.attempt} is {job.state}; waiting for another one"
    return f"attempt {job.attempt} is {job.state}: {job.snapshot.message or 'its pod has not begun'}"


def newest_attempt(directory: Path) -> int:
    """Number of the newest attempt of a training.

    Raises:
        StorageError: none has begun.
    """
    found = TrainDir(directory).numbers()
    if not found:
        raise StorageError(f"{directory}: no attempt has begun, so there is no log yet")
    return found[-1]


def log_file(directory: Path, attempt: int, rank: int) -> Path:
    """A rank's log file.

    Raises:
        StorageError: there is none; those that are there are named.
    """
    folder = TrainDir(directory).attempt(attempt)
    path = TrainDir(directory).files(attempt).log(rank)
    if not path.is_file():
        names = sorted((item.name for item in folder.glob("rank-*.log")), key=lambda name: (len(name), name))
        shown = ", ".join(names[:4]) + (f" … {names[-1]}" if len(names) > 4 else "")
        raise StorageError(f"no {path.name} in {folder}; there: {shown or 'no log of any rank yet'}")
    return path


def last_lines(path: Path, lines: int) -> list[str]:
    """The end of a log file."""
    return [line.decode(errors="replace") for line in path.read_bytes().splitlines()[-lines:]]


def follow_file(
    directory: Path,
    rank: int,
    *,
    is_running: Callable[[], bool],
    lines: int,
    note: Say,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """A rank's log file as it grows, over all attempts from the newest on, until nothing of the training runs any more.

    Raises:
        StorageError: that rank has no log.
    """
    attempt = newest_attempt(directory)
    path = log_file(directory, attempt, rank)
    data = path.read_bytes()
    whole, _, left = data.rpartition(b"\n")
    yield from (line.decode(errors="replace") for line in whole.splitlines()[-lines:])
    offset = len(data)
    while True:
        was_running = is_running()  # asked before reading, so that the last words are read
        if path.is_file():
            with path.open("rb") as file:
                file.seek(offset)
                new = file.read()
            offset += len(new)
            *ended, left = (left + new).split(b"\n")
            yield from (line.decode(errors="replace") for line in ended)
        if (latest := newest_attempt(directory)) > attempt:
            attempt, offset, left = latest, 0, b""
            path = TrainDir(directory).files(attempt).log(rank)
            note(f"attempt {attempt}: {path}")
        elif not was_running:
            return
        sleep(FILE_POLL_S)


def require_rank(job: SeenJob, rank: int) -> None:
    """Refuse a rank that the job does not have.

    Raises:
        ClusterError: with the ranks that there are.
    """
    if not 0 <= rank < job.nodes * job.processes:
        raise ClusterError(f"{job.name} has ranks 0 to {job.nodes * job.processes - 1}, got --rank {rank}")
