"""The worker's event protocol: rank 0 appends JSON lines to a file and prints the same lines behind a prefix.

Written by `steps/train`, read by `steps/job`, the cards and the command line. The events are the heartbeat, the progress line,
the live card and the account at once. A line is one `write` on a descriptor opened for appending, so lines never mix.

| kind | step | data |
|---|---|---|
| started | step resumed from | of, world, processes, node, pid, claim (the writer), resumed_from, passed_over, layout_changed |
| model_loaded | | seconds, parameters, trainable |
| first_step | first | seconds (compilation included) |
| step | done | of, loss, lr, tokens, target_tokens, tokens_per_s, grad_norm, seconds |
| checkpoint_begin, checkpoint | of the save | checkpoint: seconds, bytes, path |
| validation_begin, validation | done | begin: what (`adapter`: the exported one); validation: loss, seconds, best |
| validation_progress | done | done, of: held-out rows looked at, every few seconds |
| stopping | done | reason |
| finished | last | result (path), seconds; shapes (of batches), where the device compiles each |
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

Kind = Literal[
    "started",
    "model_loaded",
    "first_step",
    "step",
    "checkpoint_begin",
    "checkpoint",
    "validation_begin",
    "validation_progress",
    "validation",
    "stopping",
    "finished",
]
KINDS: frozenset[str] = frozenset(get_args(Kind))
PREFIX = "@hyperpod-lora "
"""Starts an event's line in a log; what follows is the JSON object."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a worker."""

    kind: str
    time_s: float
    """Unix time on the worker's clock: for people and for differences within one worker, never for deadlines."""
    attempt: int
    step: int
    data: dict[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """One JSON line, no newline at its end. NaN and infinity are written as strings, so that any JSON reader takes it."""
        head = {"kind": self.kind, "time_s": round(self.time_s, 3), "attempt": self.attempt, "step": self.step}
        return json.dumps({**head, **{key: _plain(value) for key, value in self.data.items()}})


def _plain(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def parse_line(line: str | bytes) -> Event | None:
    """The event in a line of an event file or (behind PREFIX) of a log; None for anything else."""
    text = line.decode(errors="replace") if isinstance(line, bytes) else line
    text = text.strip().removeprefix(PREFIX)
    if not text.startswith("{"):
        return None
    try:
        raw = json.loads(text)
        kind, time_s, attempt, step = raw.pop("kind"), raw.pop("time_s"), raw.pop("attempt"), raw.pop("step")
        if kind not in KINDS:
            return None
        return Event(kind, float(time_s), int(attempt), int(step), raw)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


class EventWriter:
    """Appends events to a file and prints them. Used by rank 0 only."""

    def __init__(
        self, path: Path, *, attempt: int, stream: TextIO | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._attempt = attempt
        self._stream = stream if stream is not None else sys.stdout
        self._clock = clock

    def emit(self, kind: Kind, step: int, **data: Any) -> Event:
        """Write one event.

        A line that an earlier writer, or a full disk, left torn is closed first, so that it costs no more than itself. The file
        is what counts: a closed stream (whoever read it has gone) does not end a training.

        Raises:
            OSError: the file cannot be written.
        """
        event = Event(kind, self._clock(), self._attempt, step, data)
        line = event.to_line()
        data_left = (("\n" if self._is_torn() else "") + line + "\n").encode()
        while data_left:  # a nearly full disk takes a part, and says so at the next try
            data_left = data_left[os.write(self._file, data_left) :]
        with contextlib.suppress(OSError):
            self._stream.write(PREFIX + line + "\n")
            self._stream.flush()
        return event

    def _is_torn(self) -> bool:
        size = os.fstat(self._file).st_size
        return size > 0 and os.pread(self._file, 1, size - 1) != b"\n"


class EventTail:
    """Reads an event file as it grows. A torn last line is read once it is whole; foreign lines are counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.foreign = 0
        """Whole lines that were no event."""

    def read_new(self) -> list[Event]:
        """Events written since the last call; empty while the file does not exist."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # cut off or put back by somebody: read anew
                    self._offset = 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = [parse_line(line) for line in whole.splitlines()]
        self.foreign += sum(event is None for event in found)
        return [event for event in found if event is not None]
