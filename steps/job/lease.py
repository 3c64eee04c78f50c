"""Who may act on a training: one supervisor at a time (a lock), for as long as it lives (a lease).

The lock keeps a second supervisor from acting; it follows the first and takes over when that one is gone. The lease is a counter
in the attempt's directory: whoever watches over the workers ends them when it has not moved for `lease_s`, so that workers whose
supervisor died for good do not hold a machine for ever. Each side uses its own monotonic clock; the clocks are never compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from steps.errors import JobTimeout, StorageError
from steps.job import messages
from steps.job.agent.agent import DETACHED
from steps.job.agent.in_use import held, is_held_beside
from steps.job.job import Job, Outside
from steps.protocol.events import Event, EventTail
from steps.protocol.rundir import (
    MAY_PASS,
    TrainDir,
    errnos,
    read_json,
    require_there,
    storage_errors,
    write_atomic,
)

T = TypeVar("T")
ADVANCES_PER_LEASE = 20
"""So that a slow disk or a busy machine never looks like a dead supervisor."""
ADVANCE_S = 20.0
"""Longest time between two, however long the lease: who reads it may have been told another length."""
INSIST_S = 1.0
FOLLOW_POLL_S = 1.0
NO_LOCKS = errnos("ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP")
"""What a file system says that was mounted without locks, or whose lock service is away."""


@dataclass(slots=True)
class Patience:
    """With a run directory that fails: nothing is ended because of it before half of the lease is gone."""

    limit_s: float
    outside: Outside
    well_s: float = 0.0
    """Clock time when it was last seen to work."""
    is_failing: bool = False

    def begin(self) -> None:
        """From now on the time counts."""
        self.well_s, self.is_failing = self.outside.clock(), False

    def praise(self) -> None:
        """It works."""
        if self.is_failing:
            self.outside.notice(f"the run directory works again after {self.outside.clock() - self.well_s:.0f} s")
        self.begin()

    def excuse(self, error: Exception) -> None:
        """Take note of a failure; the first one is told.

        Raises:
            StorageError: it has failed for too long.
        """
        failing_s = self.outside.clock() - self.well_s
        if failing_s > self.limit_s:
            raise StorageError(
                f"{error} (so for {failing_s:.0f} s, and half of the lease, {self.limit_s:.0f} s, is gone; the workers save "
                "and end themselves when all of it is)"
            ) from error
        if not self.is_failing:
            self.is_failing = True
            self.outside.notice(f"{error}; tried again until half of the lease ({self.limit_s:.0f} s) is gone")

    def insist(self, action: Callable[[], T]) -> T:
        """Do it again while the run directory fails in a way that may pass.

        Raises:
            StorageError: it failed for too long, or in another way.
        """
        self.begin()
        while True:
            try:
                done = action()
            except (OSError, StorageError) as error:
                cause = error.__cause__ if isinstance(error, StorageError) else error
                if not isinstance(cause, OSError) or cause.errno not in MAY_PASS:
                    raise
                self.excuse(error)
                self.outside.sleep(INSIST_S)
            else:
                self.praise()
                return done


@dataclass(slots=True)
class Lease:
    """The counter of one attempt."""

    job: Job
    lease_s: float
    outside: Outside
    patience: Patience
    is_detached: bool = False
    """Nobody's death ends the workers: a counter is never written."""
    counter: int = 0
    advanced_at_s: float = float("-inf")

    def begin(self, attempt: int, spent_s: float = 0.0) -> None:
        """Advance now, whatever the time.

        Raises:
            StorageError: the disk refused.
        """
        self.patience.begin()
        self._write(attempt, spent_s)

    def advance(self, attempt: int, spent_s: float = 0.0) -> None:
        """Advance the counter if it is time to. `spent_s`: what the attempt has used so far, for a later supervisor.

        Raises:
            StorageError: the disk has refused until half of the lease was gone.
        """
        if self.outside.clock() - self.advanced_at_s < min(self.lease_s / ADVANCES_PER_LEASE, ADVANCE_S):
            return
        try:
            self._write(attempt, spent_s)
        except (OSError, StorageError) as error:
            self.patience.excuse(error)
        else:
            self.patience.praise()

    def _write(self, attempt: int, spent_s: float) -> None:
        if self.is_detached:
            self.detach(attempt)
            self.advanced_at_s = self.outside.clock()
            return
        path = self.job.directory.files(attempt).lease
        require_there(self.job.directory.path)
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The process id makes the counters of two supervisors differ; a torn write is a change like any other.
            self.counter += 1
            path.write_text(f"{os.getpid()} {self.counter} {spent_s:.1f}\n")
        self.advanced_at_s = self.outside.clock()

    def detach(self, attempt: int) -> None:
        """Let the workers go on unwatched until their own deadline.

        Raises:
            StorageError: the disk refused.
        """
        detach(self.job.directory, attempt)


def detach(directory: TrainDir, attempt: int) -> None:
    """Nobody watches over this attempt, and nobody has to.

    Raises:
        StorageError: the disk refused.
    """
    write_atomic(directory.files(attempt).lease, DETACHED.encode())


def spent_so_far(directory: TrainDir, attempt: int) -> float:
    """Seconds that an attempt had used when its supervisor last advanced the lease; 0 where it is not told."""
    try:
        return max(0.0, float(directory.files(attempt).lease.read_text().split()[2]))
    except (OSError, ValueError, IndexError):
        return 0.0


@contextlib.contextmanager
def acting(job: Job, patience_s: float, outside: Outside, patience: Patience) -> Iterator[None]:
    """Hold the right to act. While another supervisor holds it, its workers' events are passed on.

    Raises:
        JobTimeout: another one still held it after `patience_s`.
        StorageError: the directory cannot be used, or its file system knows no locks.
    """
    directory = job.directory
    with storage_errors(f"writing {directory.lock}"):
        directory.path.mkdir(parents=True, exist_ok=True)
    patience.insist(lambda: require_locks(directory.path))
    lock = FileLock(directory.lock)
    follower = Follower(job, outside.observe)
    until_s = outside.clock() + patience_s
    while not patience.insist(lambda: _try(lock, directory)):
        if not follower.has_begun:
            outside.notice(messages.describe_holder(job, holder_of(directory.path)))
        patience.insist(follower.pass_on)
        if outside.clock() > until_s:
            raise JobTimeout(f"{job.label}: another supervisor has held {directory.lock} for {patience_s:.0f} s")
        outside.sleep(FOLLOW_POLL_S)
    try:
        with held(directory.holder, "supervisor"):
            yield
    finally:
        lock.release()


def require_locks(folder: Path) -> None:
    """The file system of a folder knows locks: without them two launchers would act at once.

    Raises:
        StorageError: it knows none, or the folder cannot be written.
    """
    with storage_errors(f"writing in {folder}"), tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise StorageError(
                f"the file system of {folder} has no locks ({error.strerror}): mount it with them (Lustre: `flock` among the "
                "volume's mountOptions; NFS: not `nolock`), or set storage.root elsewhere"
            ) from error


def _try(lock: FileLock, directory: TrainDir) -> bool:
    """Take the lock. Where its file was removed (by a person, say) one can be taken beside its holder: he is looked at too."""
    try:
        with storage_errors(f"locking {lock.lock_file}"):
            lock.acquire(timeout=0)
    except Timeout:
        return False
    if not is_held_beside(directory.holder):
        return True
    lock.release()
    return False


def holder_of(directory: Path) -> Mapping[str, Any]:
    """Identity (see `processes`) and node of the supervisor that acts; empty if none is known."""
    try:
        return read_json(TrainDir(directory).holder)
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
        newest = max(self.job.directory.numbers(), default=0)
        if newest != self.attempt:
            self.attempt, self.tail = newest, EventTail(self.job.directory.events(newest))
        for event in self.tail.read_new() if self.tail else ():
            self.observe(event)
