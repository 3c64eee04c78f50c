"""What rows come from: a name, what tells whether it changed, and the rows.

Made by `sources` and `hub`, read by `collect` and `stage`. It is known, for the identity of what is made of it, before its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from steps.prepare.read.files import Row


@dataclass(frozen=True, slots=True)
class DataSource:
    """A data set that can be read, any number of times, in the same order."""

    name: str
    """Path, s3:// address, hub id with revision, or builtin name."""
    fingerprint: str
    """Changes with the content."""
    size: int
    """What the last row's `done` will be about."""
    rows: Callable[[], Iterator[Row]]
    bytes: int = 0
    """Of its files, to estimate the room that is needed; 0 if not known."""
    files: tuple[str, ...] = ()
    """SHA-256 and name of each data file, in `sha256sum`'s own form; none where no file is read."""
    unit: str = "rows"
    """Of `size`: rows or bytes."""
    notes: tuple[str, ...] = ()
    """What a person should know of it: files that are not read, or not trained on."""
    has_sides: bool = False
    """Its rows say themselves on which side they are."""
