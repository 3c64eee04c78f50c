"""One sink's thread: reads what is new, hands it to the sink, and keeps the sink's trouble to itself.

Events are read from the attempts' own files, which are the truth: nothing is queued in memory, nothing is lost when a sink is
away for hours, and a launcher that adopts a training tells what it missed. Only turns of the story (`Change`) are handed over.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from steps.job.job import Change
from steps.protocol.events import Event, EventTail
from steps.protocol.rundir import TrainDir
from steps.report.sink import ReportError, Sink

FAILURES_BEFORE_REST = 3
REST_S = 60.0
"""After failures in a row the sink is left alone for so long."""
MOST_EVENTS = 5000
"""Held at once; the rest waits in the files."""


@dataclass(slots=True)
class Unsent:
    """What a sink has not been told yet."""

    directory: TrainDir
    told: queue.SimpleQueue[Change] = field(default_factory=queue.SimpleQueue)
    changes: list[Change] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    tails: dict[int, EventTail] = field(default_factory=dict)

    def read(self) -> None:
        """Take in what is new."""
        while not self.told.empty():
            self.changes.append(self.told.get_nowait())
        for number in self.directory.numbers():
            if len(self.events) >= MOST_EVENTS:
                return
            tail = self.tails.setdefault(number, EventTail(self.directory.events(number)))
            self.events.extend(tail.read_new())

    def clear(self) -> None:
        """It has been told."""
        self.changes.clear()
        self.events.clear()


class Pump:
    """Runs a sink. `tell` and `close` are the caller's; all else happens in the pump's own thread."""

    def __init__(self, sink: Sink, directory: TrainDir, say: Callable[[str], None]) -> None:
        self.sink = sink
        self._unsent = Unsent(directory)
        self._say = say
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"report-{sink.name}", daemon=True)
        self._failures = 0
        self._failing_since_s = 0.0
        self._rests_until_s = 0.0

    def tell(self, change: Change) -> None:
        """Hand over a turn of the story; the first one starts the thread. Returns at once."""
        self._unsent.told.put(change)
        if not self._thread.is_alive() and not self._closing.is_set():
            self._thread.start()

    def ask_to_close(self) -> None:
        """Tell the rest, and end."""
        self._closing.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end; a sink that hangs is left behind, and said to be."""
        if not self._thread.is_alive():
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._say(
                f"{self.sink.name} did not take the last words in time; training and result are not touched by it"
            )

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(self.sink.every_s)
            if is_last or time.monotonic() >= self._rests_until_s:
                self._round(is_last=is_last)

    def _round(self, *, is_last: bool) -> None:
        try:
            self._unsent.read()
            self.sink.send(self._unsent.changes, self._unsent.events)
            if is_last:
                self.sink.close()
        except Exception as error:  # whatever a sink does must never reach the training; it is said
            self._note_failure(error, is_last=is_last)
            return
        self._unsent.clear()
        if self._failures:
            self._say(
                f"{self.sink.name} answers again after {time.monotonic() - self._failing_since_s:.0f} s; caught up"
            )
        self._failures = 0

    def _note_failure(self, error: Exception, *, is_last: bool) -> None:
        words = str(error) if isinstance(error, ReportError | OSError) else f"{type(error).__name__}: {error}"
        if self._failures == 0:
            self._failing_since_s = time.monotonic()
            self._say(f"{self.sink.name}: {words[:300]}; the training goes on without it, and it is tried again")
        self._failures += 1
        if self._failures >= FAILURES_BEFORE_REST:
            self._rests_until_s = time.monotonic() + REST_S
        if is_last:
            count = len(self._unsent.changes) + len(self._unsent.events)
            self._say(f"{self.sink.name} was not told the last {count} of what happened; it stays in the run directory")
