"""How long work in this room tells of itself: `say(what, done, of)`, a few times a second at most.

Used by the sources; what is done with the words is the caller's business.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Say = Callable[[str, int, int], None]
"""(what is being done, units done, units in all); the unit is bytes for downloads, tensors for conversions."""
Room = Callable[[int], None]
"""Called with the bytes that are about to be written; raises StorageError if they do not fit."""
INTERVAL_S = 1.0


def silent(what: str, done: int, of: int) -> None:
    """Say nothing."""


@contextlib.contextmanager
def watched(folder: Path, total_bytes: int, say: Say, what: str) -> Iterator[None]:
    """Say how much is in `folder` while the block fills it: for libraries that have no callback of their own."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(INTERVAL_S):
            say(what, min(_bytes_below(folder), total_bytes), total_bytes)

    watcher = threading.Thread(target=watch, name="download-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    say(what, total_bytes, total_bytes)


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a finished part is renamed while we look
            total += path.stat().st_size
    return total
