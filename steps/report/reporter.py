"""Tells the outside world of a training: every sink in a thread of its own, none of which the training ever waits for.

The supervisor that acts hands every turn of the story to `tell`; a launcher that only follows another hands over nothing, so
nothing is told twice. Which sinks there are is in `choose`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from pathlib import Path

from steps.job.job import Change
from steps.protocol.rundir import TrainDir
from steps.report.pump import Pump
from steps.report.sink import Sink

CLOSE_S = 10.0
"""For the last words of all sinks together."""


class Reporter:
    """All sinks of one training."""

    def __init__(self, folder: Path, sinks: Sequence[Sink]) -> None:
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._pumps = [Pump(sink, TrainDir(folder), self._said.put) for sink in sinks]

    def tell(self, change: Change) -> None:
        """Hand a turn of the story to every sink; returns at once."""
        for pump in self._pumps:
            pump.tell(change)

    def sentences(self) -> list[str]:
        """What a person should know of the sinks, since the last call."""
        found = []
        while not self._said.empty():
            found.append(self._said.get_nowait())
        return found

    def close(self) -> list[str]:
        """Let every sink tell the rest, within `CLOSE_S` in all; what is left to say."""
        until_s = time.monotonic() + CLOSE_S
        for pump in self._pumps:
            pump.ask_to_close()
        for pump in self._pumps:
            pump.join(max(0.0, until_s - time.monotonic()))
        return self.sentences()
