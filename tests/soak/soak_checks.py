"""What a soak holds against the run directory, and how long each recovery took. Used by `soak` and `soak_flow`."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from steps.protocol import checkpoints
from steps.protocol.events import Event, EventTail
from steps.protocol.rundir import TrainDir, read_json


@dataclass(frozen=True, slots=True)
class Kill:
    """One signal to one target."""

    at_s: float
    """Unix time."""
    target: str
    signal: str
    attempt: int
    """The newest then; 0: none."""
    step: int
    """Of the newest complete checkpoint then."""


@dataclass
class Watched:
    """The complete checkpoints seen so far."""

    seen: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Name → (step, text of COMPLETE.json)."""
    newest: int = 0

    def look(self, place: TrainDir) -> None:
        """Note every complete checkpoint; none may change, and the newest step never goes back.

        Raises:
            AssertionError: one did.
        """
        newest = 0
        for path in checkpoints.directories(place.checkpoints):
            try:
                record = (path / checkpoints.COMPLETE).read_text()
                step = int(json.loads(record)["step"])
            except (OSError, ValueError):
                continue
            newest = max(newest, step)
            before = self.seen.setdefault(path.name, (step, record))
            assert before == (step, record), f"{path.name} was rewritten"
        assert newest >= self.newest or place.adapter.is_dir(), f"step {self.newest} was complete, now it is {newest}"
        self.newest = max(newest, self.newest)


def count(kills: Iterable[Kill]) -> Counter[str]:
    """How often each target got each signal."""
    return Counter(f"{kill.target} {kill.signal}" for kill in kills)


def newest_attempt(place: TrainDir) -> int:
    """Its number, 0 before the first."""
    return max((int(path.name) for path in place.path.glob("attempts/[0-9]*")), default=0)


def steps_are_consistent(place: TrainDir) -> list[str]:
    """What is wrong with the step numbers of the events: each attempt goes on by one from where it says it started."""
    wrong = []
    for path in sorted(place.path.glob("attempts/*/events.jsonl")):
        expected: int | None = None
        for event in EventTail(path).read_new():
            if event.kind == "started":
                expected = event.step
            elif event.kind == "step":
                if expected is None or event.step != expected + 1:
                    wrong.append(f"{path.parent.name}: step {event.step} after {expected}")
                expected = event.step
    return wrong


def recovery_told(place: TrainDir, kills: Sequence[Kill]) -> dict[str, object]:
    """Seconds from a SIGKILL to the next attempt and from its loaded model to its first step: all but imports and loading.

    Only where nothing else was struck in between, and the struck attempt was the one that ended.
    """
    created_s = {item["number"]: item["created_s"] for item in read_json(place.history)["attempts"]}
    found: dict[str, list[tuple[float, float]]] = {}
    for kill, following in zip(kills, [*kills[1:], None], strict=True):
        after = {event.kind: event for event in reversed(events_of(place, kill.attempt + 1))}
        if kill.signal != "SIGKILL" or not {"model_loaded", "first_step"} <= set(after):
            continue
        is_alone = following is None or following.at_s > after["first_step"].time_s
        if is_alone and created_s[kill.attempt + 1] > kill.at_s and kill.attempt:
            to_attempt_s = created_s[kill.attempt + 1] - kill.at_s
            to_step_s = after["first_step"].time_s - after["model_loaded"].time_s
            found.setdefault(kill.target, []).append((to_attempt_s, to_step_s))
    return {target: told_of(pairs) for target, pairs in sorted(found.items())}


def told_of(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians and the worst."""
    sums = [first + second for first, second in pairs]
    return {
        "times": len(pairs),
        "kill_to_next_attempt_s": round(statistics.median(first for first, _ in pairs), 2),
        "loaded_to_first_step_s": round(statistics.median(second for _, second in pairs), 2),
        "beyond_imports_and_load_s": round(statistics.median(sums), 2),
        "worst_s": round(max(sums), 2),
    }


def events_of(place: TrainDir, attempt: int) -> list[Event]:
    """All events of an attempt."""
    path = place.events(attempt)
    return EventTail(path).read_new() if path.is_file() else []
