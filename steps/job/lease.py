"""Who may act on a training: one supervisor at a time (a lock), for as long as it lives (a lease).

The lock keeps a second supervisor from acting; it follows the first and takes over when that one is gone. The lease is a counter
in the attempt's directory: whoever watches over the workers ends them when it has not moved for `lease_s`, so that workers whose
supervisor died for good do not hold a machine for ever. Each side uses its own monotonic clock; the clocks are never compared.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from steps.errors import JobTimeout, StorageError
from steps.job import messages
from steps.job.agent.agent import DETACHED
from steps.job.agent.in_use import HOLDER, held
from steps.job.job import Job
from steps.protocol.events import Event, EventTail
from steps.protocol.rundir import read_json, storage_errors, write_atomic

LEASE = "lease"
ADVANCES_PER_LEASE = 20
"""So that a slow disk or a busy machine never looks like a dead supervisor."""
FOLLOW_POLL_S = 1.0


@dataclass(slots=True)
class Lease:
    """The counter of one attempt."""

    job: Job
    lease_s: float
    clock: Callable[[], float]
    counter: int = 0
    advanced_at_s: float = float("-inf")

    def begin(self, attempt: int) -> None:
        """Advance now, whatever the time."""
        self.advanced_at_s = float("-inf")
        self.advance(attempt)

    def advance(self, attempt: int) -> None:
        """Advance the counter if it is time to.

        Raises:
            StorageError: the disk refused.
        """
        if self.clock() - self.advanced_at_s < self.lease_s / ADVANCES_PER_LEASE:
            return
        path = self.job.directory.attempt(attempt) / LEASE
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The process id makes the counters of two supervisors differ; a torn write is a change like any other.
            self.counter += 1
            path.write_text(f"{os.getpid()} {self.counter}\n")
        self.advanced_at_s = self.clock()

    def detach(self, attempt: int) -> None:
        """Let the workers go on unwatched until their own deadline.

        Raises:
            StorageError: the disk refused.
        """
        write_atomic(self.job.directory.attempt(attempt) / LEASE, DETACHED.encode())


@contextlib.contextmanager
def acting(
    job: Job,
    patience_s: float,
    *,
    observe: Callable[[Event], None],
    notice: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[None]:
    """Hold the right to act. While another supervisor holds it, its workers' events are passed on.

    Raises:
        JobTimeout: another one still held it after `patience_s`.
    """
    directory = job.directory
    with storage_errors(f"writing {directory.lock}"):
        directory.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.lock)
    follower = Follower(job, observe)
    until_s = clock() + patience_s
    while not _try(lock):
        if not follower.has_begun:
            notice(messages.describe_holder(job, holder_of(directory.path)))
        follower.pass_on()
        if clock() > until_s:
            raise JobTimeout(f"{job.label}: another supervisor has held {directory.lock} for {patience_s:.0f} s")
        sleep(FOLLOW_POLL_S)
    try:
        with held(directory.path / HOLDER, "supervisor"):
            yield
    finally:
        lock.release()


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def holder_of(directory: Path) -> Mapping[str, Any]:
    """Identity (see `processes`) and node of the supervisor that acts; empty if none is known."""
    try:
        return read_json(directory / HOLDER)
    except StorageError:
        return {}


@dataclass(slots=True)
class Follower:
    """Passes on the events of attempts that another supervisor watches over."""

    job: Job
    observe: Callable[[Event], None]
    attempt: int = 0
    tail: EventTail | None = None
    has_begun: bool = False

    def pass_on(self) -> None:
        """Events since the last call, of the newest attempt."""
        self.has_begun = True
        attempts = self.job.directory.attempt(1).parent
        newest = max((int(path.name) for path in attempts.glob("[0-9]*")), default=0)
        if newest != self.attempt:
            self.attempt, self.tail = newest, EventTail(self.job.directory.events(newest))
        for event in self.tail.read_new() if self.tail else ():
            self.observe(event)
