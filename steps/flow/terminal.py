"""What a person reads in the terminal while a job runs: one line with step, loss, tokens/s and the time left.

Fed with the worker's events; prints a line at most every few seconds, and always the last one. A reader that has gone (the
runtime was killed) is no reason to stop: printing never raises.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping

from steps.plain_text import counted, visible
from steps.protocol.events import Event


def number(value: object) -> float:
    """A figure from an event; 0 for what is none, since a damaged event must not end the job that it tells of."""
    try:
        found = float(value)  # type: ignore[arg-type]  # what it does not take is the point
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if math.isfinite(found) else 0.0


def seconds_in_words(seconds: float) -> str:
    """`4 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


_said_s = -math.inf


def said_at_s() -> float:
    """When `say` last said something, on the monotonic clock."""
    return _said_s


def say(line: str) -> None:
    """Print one line now, with nothing in it that a terminal would act on.

    A closed pipe is ignored, so that a job survives the terminal it was started from.
    """
    global _said_s
    _said_s = time.monotonic()
    line = visible(line) + "\n"  # in one piece: other threads speak as well
    try:
        print(line, end="", flush=True)
    except UnicodeEncodeError:  # a terminal without UTF-8 gets ? for ×
        encoding = sys.stdout.encoding or "ascii"
        print(line.encode(encoding, "replace").decode(encoding), end="", flush=True)
    except OSError:
        return


class Pace:
    """The time that a training still takes, from the times of its steps; validations and saves between them are in it."""

    def __init__(self) -> None:
        self._first: Event | None = None

    def seconds_left(self, event: Event) -> float:
        """Seconds until the last step, after a `step` event of the attempt; from that step alone when it is the first."""
        first = self._first
        if first is None or first.attempt != event.attempt or event.step <= first.step:
            self._first = first = event
        steps = event.step - first.step
        spent_s = event.time_s - first.time_s if steps else number(event.data.get("seconds"))
        return number((number(event.data.get("of")) - event.step) * max(spent_s, 0.0) / max(steps, 1))


class ProgressPrinter:
    """Turns events into lines."""

    def __init__(self, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._next_s = 0.0
        self._pace = Pace()
        self._of = 0
        self.doing = "waiting for the workers"
        """What the job does now, in words, for whoever tells of a long silence."""

    def notice(self, sentence: str) -> None:
        """Print a sentence of the supervisor's."""
        say(sentence)

    def observe(self, event: Event) -> None:
        """Print what the event means for a person, if anything."""
        self._of = _whole(event.data, "of") if event.kind in ("started", "step") else self._of
        self.doing = _doing_after(event, self._of)
        line = self.line(event)
        if line:
            say(line)

    def line(self, event: Event) -> str:
        """What the event means for a person; empty: nothing, or too soon after the last line."""
        data = event.data
        match event.kind:
            case "started":
                where = f", from the checkpoint of step {event.step}" if event.step else ""
                where += ", saved on another layout" if data.get("layout_changed") is True else ""
                world = counted(_whole(data, "world", 1), "process", "processes")
                return f"attempt {event.attempt}: workers started ({world}){where}"
            case "model_loaded":
                trained, total = number(data.get("trainable")), number(data.get("parameters"))
                return f"model loaded: {trained:,.0f} of {total:,.0f} parameters are trained"
            case "step":
                return self._step_line(event)
            case "validation_progress":
                return f"step {event.step}: validation: {_whole(data, 'done')}/{counted(_whole(data, 'of'), 'row')}"
            case "validation":
                return f"step {event.step}: validation loss {_loss(data)}"
            case "stopping":
                return f"step {event.step}: asked to stop; the state is saved"
            case _:
                return ""

    def _step_line(self, event: Event) -> str:
        data = event.data
        of = _whole(data, "of")
        left_s = self._pace.seconds_left(event)
        now_s = self._clock()
        if now_s < self._next_s and event.step != of:
            return ""
        self._next_s = now_s + self._every_s
        speed = f"{number(data.get('tokens_per_s')):,.0f} tokens/s"
        return f"step {event.step}/{of} | loss {_loss(data)} | {speed} | {seconds_in_words(left_s)} left"


def _doing_after(event: Event, steps: int) -> str:
    match event.kind:
        case "started":
            return "loading the model"
        case "model_loaded" | "first_step" | "step" | "validation" | "checkpoint":
            return "after the last step" if 0 < steps <= event.step else f"step {event.step + 1}"
        case "validation_begin" if event.data.get("what") == "adapter":
            return "check of the exported adapter"
        case "validation_begin" | "validation_progress":
            return f"step {event.step}: validation"
        case "checkpoint_begin":
            return f"step {event.step}: saving"
        case _:
            return "the workers end"


def _whole(data: Mapping[str, object], name: str, otherwise: int = 0) -> int:
    return int(number(data.get(name, otherwise)))


def _loss(data: Mapping[str, object]) -> str:
    loss = data.get("loss")
    return f"{loss:.4f}" if isinstance(loss, float) else str(loss)


class StageProgress:
    """Progress of a stage without a job: `progress(what, done, total)`, a bar every few seconds, and the end of one begun.

    `what` ends in its unit, as in `merge, bytes`. `idle`: what is done where nothing else is said.
    """

    def __init__(self, idle: str = "", *, every_s: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle = idle
        self._every_s = every_s
        self._clock = clock
        self._next_s = clock() + every_s
        self._unfinished = ""
        self.doing = idle
        """What is being done now, in words, for whoever tells of a long silence."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print where the stage is; `total` 0 means unknown."""
        label, _, unit = what.rpartition(", ")
        now_s = self._clock()
        is_end = 0 < total <= done
        self.doing = self._idle if is_end else label
        if now_s < self._next_s and not (is_end and label == self._unfinished):
            return
        self._next_s = now_s + self._every_s
        self._unfinished = "" if is_end else label
        say(f"{label}: {_bar(done, total)}{_amount(done, total, unit)}")


def _bar(done: int, total: int) -> str:
    filled = round(20 * min(done / total, 1)) if total > 0 else 0
    return f"[{'#' * filled}{'.' * (20 - filled)}] " if total > 0 else ""


def _amount(done: int, total: int, unit: str) -> str:
    """`512/1,320 rows`, `113/257 MiB`; without a total `512 rows`."""
    if unit == "bytes":
        of = f"/{total / 2**20:,.0f}" if total > 0 else ""
        return f"{done / 2**20:,.0f}{of} MiB"
    of = f"{done:,}/" if total > 0 else ""
    return of + counted(total if total > 0 else done, unit.removesuffix("s"))
