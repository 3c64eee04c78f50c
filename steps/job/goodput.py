"""Where the time went: seconds of each attempt and of the whole, goodput, node-hours and cost.

`account` is pure; `account_of` feeds it from a run directory: attempts from the history, events from their files.

An attempt's wall time is cut at its events, and each piece has exactly one name, so the pieces add up to the whole:

queue → startup → model_load → compile (the first step beyond a median one) → productive | checkpoint | validation → exit

`lost` are steps that a later attempt did again. `recovery` is everything from a failure to the next training step: finding
it, evidence, the delay, and the next attempt's way to its first step. `idle` is the time between supervisors when nothing ran.
Boundaries are cut to the attempt's own limits, so a worker whose clock is off shifts time between names, never changes the sum.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.job.history import History
from steps.protocol.events import Event, parse_line
from steps.protocol.rundir import TrainDir
from steps.settings.config import Prices

PIECES = (
    "queue", "startup", "model_load", "compile", "productive", "checkpoint", "validation", "lost", "recovery", "exit", "idle"
)  # fmt: skip
BEFORE_TRAINING = ("startup", "model_load", "compile")
NAME_BEFORE: dict[str, str] = {
    "started": "startup",
    "model_loaded": "model_load",
    "first_step": "first_step",
    "step": "step",
    "checkpoint_begin": "step",
    "checkpoint": "checkpoint",
    "validation_begin": "step",
    "validation_progress": "validation",
    "validation": "validation",
    "stopping": "step",
    "finished": "exit",
}
"""What the time before an event was spent on."""


@dataclass(frozen=True, slots=True)
class Span:
    """An attempt's limits in Unix seconds, and its events (read once)."""

    number: int
    created_s: float
    ended_s: float
    """When the next attempt was created, or when the supervisor was done."""
    failed_s: float | None
    """When its first worker failed, if one did."""
    admitted_s: float | None
    events: Iterable[Event]
    idle_s: float = 0.0
    """Before it was created, when nothing ran."""
    nodes: int = 1
    """Nodes that it held."""


@dataclass(slots=True)
class AttemptAccount:
    """Seconds of one attempt, by name."""

    number: int
    nodes: int = 1
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PIECES, 0.0))
    resumed_from: int | None = None
    """None: its workers never started."""

    @property
    def total_s(self) -> float:
        """The sum of all pieces."""
        return sum(self.seconds.values())

    @property
    def node_hours(self) -> float:
        """What it held of the cluster: not while it waited in a queue, nor before it began."""
        return self.nodes * (self.total_s - self.seconds["idle"] - self.seconds["queue"]) / 3600


def account(spans: Sequence[Span], prices: Prices | None = None) -> dict[str, Any]:
    """The account of a job as plain JSON values; seconds end in `_s`."""
    accounts: list[AttemptAccount] = []
    redone_from: int | None = None
    for span in reversed(spans):
        made = _attempt(span, redone_from, is_recovering=span is not spans[0])
        if made.resumed_from is not None:
            redone_from = made.resumed_from if redone_from is None else min(redone_from, made.resumed_from)
        accounts.insert(0, made)
    return _summary(accounts, prices or Prices())


def _summary(accounts: Sequence[AttemptAccount], prices: Prices) -> dict[str, Any]:
    sums = {name: sum(item.seconds[name] for item in accounts) for name in PIECES}
    total_s = sum(sums.values())
    busy_s = total_s - sums["idle"]
    node_hours = sum(item.node_hours for item in accounts)
    cost = {"cost": round(node_hours * prices.node_hour, 2), "currency": prices.currency} if prices.node_hour else {}
    return {
        "attempts": len(accounts),
        "total_s": round(total_s, 3),
        "goodput": round(sums["productive"] / busy_s, 4) if busy_s else 0.0,
        **{f"{name}_s": round(value, 3) for name, value in sums.items()},
        "node_hours": round(node_hours, 4),
        **cost,
        "per_attempt": [
            {"attempt": item.number, "total_s": round(item.total_s, 3)}
            | {f"{name}_s": round(value, 3) for name, value in item.seconds.items()}
            for item in accounts
        ],
    }


def _attempt(span: Span, redone_from: int | None, *, is_recovering: bool) -> AttemptAccount:
    """One attempt's account; `redone_from`: steps beyond this one were done again later."""
    made = AttemptAccount(span.number, span.nodes)
    for name, seconds in _pieces(span, _noting_start(span.events, made), redone_from):
        made.seconds["recovery" if is_recovering and name in BEFORE_TRAINING else name] += seconds
    return made


def _noting_start(events: Iterable[Event], made: AttemptAccount) -> Iterator[Event]:
    for event in events:
        if event.kind == "started":
            made.resumed_from = event.step
        yield event


def _pieces(span: Span, events: Iterable[Event], redone_from: int | None) -> Iterator[tuple[str, float]]:
    """An attempt's wall time as (name, seconds); the pieces add up to it."""
    at_s = min(max(span.admitted_s or span.created_s, span.created_s), span.ended_s)
    yield from (("idle", span.idle_s), ("queue", at_s - span.created_s))
    steps: list[float] = []
    first_s, pending_s, has_trained, last_kind = 0.0, 0.0, False, ""
    for event in events:
        until_s = min(max(event.time_s, at_s), span.ended_s)
        name, passed_s, at_s = NAME_BEFORE[event.kind], until_s - at_s, until_s
        if name == "step":
            pending_s += passed_s
        elif name == "first_step":
            first_s += passed_s
        else:
            yield name, passed_s
        if event.kind == "step":
            steps.append(pending_s)
            yield ("lost" if redone_from is not None and event.step > redone_from else "productive"), pending_s
            pending_s = 0.0
        has_trained, last_kind = has_trained or event.kind in ("first_step", "step"), event.kind
    yield from _first_step(first_s, steps)
    yield from _rest(span, at_s, pending_s, is_done=last_kind == "finished", has_trained=has_trained)


def _first_step(first_s: float, steps: Sequence[float]) -> Iterator[tuple[str, float]]:
    """The first step trains as long as a median one; what it took beyond that was compilation and warming up."""
    trained_s = min(first_s, statistics.median(steps)) if steps else 0.0
    yield "productive", trained_s
    yield "compile", first_s - trained_s


def _rest(
    span: Span, at_s: float, pending_s: float, *, is_done: bool, has_trained: bool
) -> Iterator[tuple[str, float]]:
    """From the last event to the end: an orderly exit, or work cut off by a failure and then recovery."""
    if is_done or (span.failed_s is None and has_trained):
        yield "exit", pending_s + span.ended_s - at_s
        return
    died_s = min(max(span.failed_s or span.ended_s, at_s), span.ended_s)
    yield "lost" if has_trained else "startup", pending_s + died_s - at_s
    yield "recovery", span.ended_s - died_s


def account_of(directory: TrainDir, history: History, prices: Prices, *, until_s: float) -> dict[str, Any]:
    """Where the time of all attempts went, until `until_s` (Unix time); each event file is read once, line by line."""
    spans: list[Span] = []
    attempts = history.attempts
    for index, item in enumerate(attempts):
        following = attempts[index + 1] if index + 1 < len(attempts) else None
        ended_s = following.created_s if following else until_s
        if item.finished_s is not None and (following is None or following.begins_session):
            ended_s = item.finished_s
        idle_s = item.idle_s
        if idle_s is None:
            idle_s = max(0.0, item.created_s - spans[-1].ended_s) if spans else 0.0
        failed_s = (item.failed_s or item.finished_s) if item.failure_class else None
        events = _events(directory.events(item.number))
        ends = (max(ended_s, item.created_s), failed_s, item.admitted_s)
        spans.append(Span(item.number, item.created_s, *ends, events, idle_s, item.nodes or 1))
    return account(spans, prices)


def _events(path: Path) -> Iterator[Event]:
    """All events of a file, without holding them."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            event = parse_line(line)
            if event:
                yield event
