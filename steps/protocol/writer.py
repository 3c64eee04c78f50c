"""Who writes: each group of worker processes registers as a `Writer` first, and writes under that name only.

So a late writer (a stopped process that wakes up, a pod recreated with the same attempt number) can add something old, never
damage something new. Used by `checkpoints` and, through it, by the worker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from steps.errors import CheckpointError
from steps.protocol.rundir import storage_errors


@dataclass(frozen=True, slots=True, order=True)
class Writer:
    """Who writes: an attempt, and its incarnation (a pod may be recreated within an attempt). Later writers are greater."""

    attempt: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.attempt:03d}-{self.incarnation:02d}"

    @classmethod
    def parse(cls, text: str) -> Writer | None:
        """The writer that `str` wrote, None for other text."""
        match = re.fullmatch(r"(\d+)-(\d+)", text, re.ASCII)
        return cls(int(match[1]), int(match[2])) if match else None


def register_writer(writers: Path, attempt: int) -> Writer:
    """Register as a writer of `attempt`, by an exclusive mkdir in `writers`.

    Raises:
        CheckpointError: a higher attempt has already begun; this process is a straggler and must not write.
        StorageError: `writers` cannot be written.
    """
    with storage_errors(f"registering in {writers}"):
        return _register(writers, attempt)


def _register(writers: Path, attempt: int) -> Writer:
    writers.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [writer for path in writers.iterdir() if (writer := Writer.parse(path.name))]
        newest = max(taken, default=Writer(0, 0))
        if newest.attempt > attempt:
            raise CheckpointError(
                f"attempt {attempt} of {writers.parent} starts after attempt {newest.attempt} has begun: it may not write"
            )
        incarnation = 1 + max((writer.incarnation for writer in taken if writer.attempt == attempt), default=0)
        writer = Writer(attempt, incarnation)
        try:
            (writers / str(writer)).mkdir()
        except FileExistsError:
            continue
        return writer
