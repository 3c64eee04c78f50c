"""Claims: who writes. Each worker process group takes one before it writes anything, and writes under its name only.

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
class Claim:
    """Who writes: an attempt, and its incarnation (a pod may be recreated within an attempt). Later claims are greater."""

    attempt: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.attempt:03d}-{self.incarnation:02d}"

    @classmethod
    def parse(cls, text: str) -> Claim | None:
        """The claim that `str` wrote, None for other text."""
        match = re.fullmatch(r"(\d+)-(\d+)", text, re.ASCII)
        return cls(int(match[1]), int(match[2])) if match else None


def take_claim(writers: Path, attempt: int) -> Claim:
    """Claim the right to write as `attempt`, by an exclusive mkdir in `writers`.

    Raises:
        CheckpointError: a higher attempt has already begun; this process is a straggler and must not write.
        StorageError: `writers` cannot be written.
    """
    with storage_errors(f"claiming {writers}"):
        return _take_claim(writers, attempt)


def _take_claim(writers: Path, attempt: int) -> Claim:
    writers.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [claim for path in writers.iterdir() if (claim := Claim.parse(path.name))]
        newest = max(taken, default=Claim(0, 0))
        if newest.attempt > attempt:
            raise CheckpointError(
                f"attempt {attempt} of {writers.parent} starts after attempt {newest.attempt} has begun: it may not write"
            )
        incarnation = 1 + max((claim.incarnation for claim in taken if claim.attempt == attempt), default=0)
        claim = Claim(attempt, incarnation)
        try:
            (writers / str(claim)).mkdir()
        except FileExistsError:
            continue
        return claim
