"""A sentence whenever nothing was said for ten seconds: what is being done, and for how long so far.

Used around a job and around evaluation. It is a thread, so it is not used where processes are forked (`prepare`, `merge`): they
count what they do.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType

from steps.flow.terminal import said_at_s, say, seconds_in_words

QUIET_S = 8.0
"""Without a word; with the look and the printing it stays below ten seconds."""
RARER = 10
"""What has taken long is told again after a tenth of the time that it has taken: a queue of days fills no log."""
LOOK_EVERY_S = 1.0


class Heartbeat:
    """A context manager. `doing` says in words what is being done now; empty: nothing that needs a word."""

    def __init__(self, doing: Callable[[], str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._doing, self._clock = doing, clock
        self._what, self._since_s = "", clock()
        self._told_s = -math.inf
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._since_s = self._clock()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.look()

    def look(self) -> None:
        """Say what is being done, if nothing was said for long enough."""
        now_s, what = self._clock(), self._doing()
        if what != self._what:
            self._what, self._since_s = what, now_s
        if said_at_s() > self._told_s:  # somebody else has spoken: what lasts is what came after it
            self._since_s = max(self._since_s, said_at_s())
        taken_s = now_s - self._since_s
        if what and now_s - max(self._told_s, self._since_s) >= max(QUIET_S, taken_s / RARER):
            say(f"{what}: {seconds_in_words(taken_s)} so far")
            self._told_s = said_at_s()
