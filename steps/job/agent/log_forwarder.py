"""Copies the ranks' logs to this process's output while they grow, so that `kubectl logs` shows them. Used by `pod_main`.

The lines of a node's first rank come as they are, those of the others behind `[rank N] `.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from steps.protocol.train_dir import AttemptDir

POLL_S = 0.25
LONGEST_LINE = 2**16
"""A line that does not end is cut here."""


class LogForwarder:
    """Follows rank-<r>.log of some ranks from a thread, from `with` to its end."""

    def __init__(self, folder: Path, *, ranks: Sequence[int], stream: TextIO | None = None) -> None:
        self._paths = {rank: AttemptDir(folder).log(rank) for rank in ranks}
        self._first = min(ranks)
        self._offsets = dict.fromkeys(ranks, 0)
        self._stream = stream or sys.stdout
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log-forwarder", daemon=True)

    def __enter__(self) -> LogForwarder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        self.copy(is_last=True)

    def _follow(self) -> None:
        while not self._over.wait(POLL_S):
            self.copy()

    def copy(self, *, is_last: bool = False) -> None:
        """Write what is new, in whole lines; at the end, also a last line that is not whole."""
        for rank, path in self._paths.items():
            try:
                with path.open("rb") as file:
                    file.seek(self._offsets[rank])
                    data = file.read()
            except OSError:  # not there yet, or the shared file system is away: the log itself is elsewhere
                continue
            if not is_last and len(data) < LONGEST_LINE:
                data = data[: data.rfind(b"\n") + 1]
            self._offsets[rank] += len(data)
            head = "" if rank == self._first else f"[rank {rank}] "
            for line in data.decode(errors="replace").splitlines():
                self._stream.write(f"{head}{line}\n")
        self._stream.flush()
