"""Whose turn it is on the one cluster: tests that take all of it down run alone, the others side by side (`pytest -n`)."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock file, shared or alone. Who waits to be alone keeps the door shut, so that no others come in before."""
    with path.open("a") as file, path.with_suffix(".door").open("a") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
