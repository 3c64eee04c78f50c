"""What is true of a training now, as numbers: the state behind every gauge. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.job.job import Change
from steps.job.progress import AFTER, Work
from steps.protocol.events import Event

NAMES = {Work.FIRST_STEP: "compile", Work.STEP: "train"}
"""Where dashboards have another word than the supervisor."""
PHASE_OF_TURN = {"attempt_began": "startup", "queued": "queue", "admitted": "startup", "attempt_ended": "recovery"}
VALUES = {"loss": "loss", "lr": "learning_rate", "grad_norm": "gradient_norm", "tokens_per_s": "tokens_per_second"}
"""A step's data → gauge."""


def phase_of(work: Work) -> str:
    """What a dashboard calls the supervisor's work."""
    return NAMES.get(work, work.replace(" ", "_"))


PHASES = (*map(phase_of, Work), "recovery", "ended")


@dataclass(frozen=True, slots=True)
class Gauge:
    """One number with its labels."""

    name: str
    """As Prometheus wants it: base units, `_total` for what only grows."""
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_counter(self) -> bool:
        """It only grows."""
        return self.name.endswith("_total")


@dataclass(slots=True)
class State:
    """A training so far."""

    steps: int
    step: int = 0
    attempt: int = 0
    phase: str = "startup"
    event_s: float = 0.0
    """Unix time of the newest event, on the worker's clock; so is the next."""
    checkpoint_s: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    """Of the newest step and validation."""
    failures: dict[int, str] = field(default_factory=dict)
    """Class of the failure, by attempt: told twice it counts once."""
    account: dict[str, Any] = field(default_factory=dict)

    def advance(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
        """Take in what is new, in the order of time."""
        news: list[Change | Event] = [*changes, *events]
        for item in sorted(news, key=lambda item: item.time_s):
            if isinstance(item, Event):
                self._see(item)
            else:
                self._hear(item)

    def _see(self, event: Event) -> None:
        if event.attempt < self.attempt:
            return
        self.phase, self.event_s = phase_of(AFTER[event.kind]), max(event.time_s, self.event_s)
        if event.kind in ("started", "first_step", "step", "finished"):
            self.step, self.attempt = event.step, event.attempt
        if event.kind == "checkpoint":
            self.checkpoint_s = event.time_s
        told = VALUES if event.kind in ("first_step", "step") else {}
        told = {"loss": "validation_loss"} if event.kind == "validation" else told
        self.values |= {name: float(event.data[key]) for key, name in told.items() if event.data.get(key) is not None}

    def _hear(self, change: Change) -> None:
        self.attempt = max(self.attempt, change.attempt)
        self.phase = PHASE_OF_TURN.get(change.kind, "ended")
        if change.kind == "attempt_ended" and change.data.get("failure_class"):
            self.failures[change.attempt] = change.data["failure_class"]
        if change.kind == "finished":
            self.account = dict(change.data["account"])

    def gauges(self, now_s: float) -> Iterator[Gauge]:
        """All that is known, as of Unix time `now_s`."""
        yield Gauge("lora_step", "Optimizer steps done.", self.step)
        yield Gauge("lora_steps", "Optimizer steps of the whole run.", self.steps)
        yield Gauge("lora_attempt", "Number of the present attempt, from 1.", self.attempt)
        for phase in PHASES:
            yield Gauge("lora_phase", "1 for what is being done now.", float(phase == self.phase), {"phase": phase})
        for name, value in self.values.items():
            yield Gauge(
                f"lora_{name}", f"{name.replace('_', ' ').capitalize()} of the newest step or validation.", value
            )
        for failure_class, count in Counter(self.failures.values()).items():
            yield Gauge("lora_attempts_failed_total", "Failed attempts.", count, {"class": failure_class})
        if self.event_s:
            yield Gauge("lora_event_age_seconds", "Since the newest event of the workers.", now_s - self.event_s)
        if self.checkpoint_s:
            yield Gauge("lora_checkpoint_age_seconds", "Since the newest checkpoint.", now_s - self.checkpoint_s)
        yield from _account(self.account)


def _account(account: Mapping[str, Any]) -> Iterator[Gauge]:
    """Where the time went; known at the end."""
    for key, value in account.items():
        if key.endswith("_s") and key != "total_s":
            yield Gauge("lora_time_seconds", "Where the time went.", value, {"piece": key.removesuffix("_s")})
    named = {"goodput": "lora_goodput_ratio", "node_hours": "lora_node_hours", "cost": "lora_cost"}
    for key, name in named.items():
        if key in account:
            yield Gauge(name, f"{key.replace('_', ' ').capitalize()} of the whole training.", account[key])
