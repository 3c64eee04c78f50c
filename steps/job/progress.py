"""How far an attempt is, and which deadline applies now. Pure: the supervisor passes in its own monotonic clock.

Times are those at which the supervisor SAW an event. The worker's clock is never compared with anything: it may be wrong.
`Progress` holds a bounded number of values however long the job runs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from steps.job.snapshot import Phase
from steps.protocol.events import Event
from steps.protocol.failure_class import FailureClass
from steps.settings.config import Deadlines

REMEMBERED_STEPS = 31
"""Step durations kept for the median: enough to ignore a slow one, few enough to follow a change of pace."""
SLOWER = 1.5
"""Than the slowest so far a step or save may be."""
MIN_STEPS_FOR_PACE = 3
"""Below this many steps the floor alone applies."""


class Work(StrEnum):
    """What the workers are doing."""

    QUEUE = "queue"
    STARTUP = "startup"
    MODEL_LOAD = "model load"
    FIRST_STEP = "first step"
    STEP = "step"
    CHECKPOINT = "checkpoint"
    VALIDATION = "validation"
    EXIT = "exit"


AFTER: dict[str, Work] = {
    "started": Work.MODEL_LOAD,
    "model_loaded": Work.FIRST_STEP,
    "first_step": Work.STEP,
    "step": Work.STEP,
    "checkpoint_begin": Work.CHECKPOINT,
    "checkpoint": Work.STEP,
    "validation_begin": Work.VALIDATION,
    "validation_progress": Work.VALIDATION,
    "validation": Work.STEP,
    "stopping": Work.EXIT,
    "finished": Work.EXIT,
}
"""What follows an event."""

CLASS_OF_WORK: dict[Work, FailureClass] = {
    Work.QUEUE: FailureClass.UNKNOWN,
    Work.STARTUP: FailureClass.UNKNOWN,  # no worker has spoken: node, image or machine
    Work.MODEL_LOAD: FailureClass.STORAGE,  # nothing but reading happens there
    Work.CHECKPOINT: FailureClass.STORAGE,
}
"""What a passed deadline means; anything else is a hang."""


@dataclass(frozen=True, slots=True)
class Progress:
    """An attempt so far, as seen through its events."""

    work: Work
    since_s: float
    """Supervisor's monotonic time when `work` began, or when the last step was seen."""
    step: int = 0
    """Steps done."""
    of: int = 0
    resumed_from: int = 0
    trained_at_s: float | None = None
    """When the first step of this attempt was seen, on the supervisor's monotonic clock."""
    durations_s: tuple[float, ...] = ()
    """Seconds that each of the latest steps took."""
    complete_step: int = 0
    """Step of the newest checkpoint whose completion was seen."""
    save_s: float = 0.0
    """Seconds that the longest save took."""
    started: dict[str, Any] | None = None
    finished: dict[str, Any] | None = None
    """Data of these two events."""
    stopping: str = ""
    """Why the worker said that it stops early."""

    @property
    def has_trained(self) -> bool:
        """At least one step was done in this attempt."""
        return self.trained_at_s is not None

    @property
    def median_step_s(self) -> float | None:
        """None before `MIN_STEPS_FOR_PACE` steps."""
        return statistics.median(self.durations_s) if len(self.durations_s) >= MIN_STEPS_FOR_PACE else None


@dataclass(frozen=True, slots=True)
class Passed:
    """A deadline that was not kept."""

    work: Work
    limit_s: float
    waited_s: float
    without: tuple[str, ...] = ()
    """Nodes that were left out: its start waited in vain for others."""

    @property
    def failure_class(self) -> FailureClass:
        """What it means."""
        return CLASS_OF_WORK.get(self.work, FailureClass.HANG)


@dataclass(slots=True)
class Spent:
    """Seconds that count against `deadlines.total_s`: those in which something of ours ran, or was wanted outside a queue.

    All times are the supervisor's monotonic clock's: a wall clock that jumps changes nothing here.
    """

    at_s: float
    """Up to where it is counted."""
    total_s: float = 0.0
    attempt_s: float = 0.0
    """Of the attempt that is watched, earlier supervisors' time included."""
    queued_s: float = 0.0
    """In a queue, in this attempt; counted nowhere."""

    def begin_attempt(self, now_s: float, before_s: float = 0.0) -> None:
        """An attempt begins, or is adopted after `before_s`."""
        self.advance(now_s)
        self.attempt_s, self.queued_s = before_s, 0.0

    def advance(self, now_s: float, *, is_queued: bool = False) -> None:
        """Count up to now."""
        passed_s, self.at_s = now_s - self.at_s, now_s
        if is_queued:
            self.queued_s += passed_s
        else:
            self.total_s += passed_s
            self.attempt_s += passed_s


def begin(now_s: float) -> Progress:
    """An attempt that was just created."""
    return Progress(Work.STARTUP, now_s)


def advance(progress: Progress, event: Event, seen_s: float) -> Progress:
    """The progress after an event."""
    work = AFTER[event.kind]
    if progress.stopping and work is Work.STEP:
        work = Work.EXIT  # the last save is over: what is left is to go
    moved = replace(progress, work=work, since_s=seen_s)
    match event.kind:
        case "started":
            told = event.data.get("of")
            of = told if isinstance(told, int) and told > 0 else progress.of
            fresh = replace(moved, durations_s=(), stopping="", finished=None)  # workers made anew begin a new count
            return replace(fresh, step=event.step, resumed_from=event.step, of=of, started=event.data)
        case "first_step" | "step":
            kept = _with_duration(progress, event, seen_s)
            trained_at_s = seen_s if progress.trained_at_s is None else progress.trained_at_s
            return replace(moved, step=event.step, trained_at_s=trained_at_s, durations_s=kept)
        case "checkpoint":
            save_s = max(progress.save_s, _seconds(event) or 0.0)
            return replace(moved, complete_step=max(event.step, progress.complete_step), save_s=save_s)
        case "finished":
            return replace(moved, step=event.step, finished=event.data)
        case "stopping":
            return replace(moved, stopping=str(event.data.get("reason", "asked to stop")))
        case "validation_progress":
            return progress  # the deadline is of the whole validation
        case _:
            return moved


def _with_duration(progress: Progress, event: Event, seen_s: float) -> tuple[float, ...]:
    """The first step's time is compilation, so only `step` counts; a duration is safe to take from the worker."""
    if event.kind != "step" or progress.work is not Work.STEP:
        return progress.durations_s
    told_s = _seconds(event)
    return (*progress.durations_s, seen_s - progress.since_s if told_s is None else told_s)[-REMEMBERED_STEPS:]


def _seconds(event: Event) -> float | None:
    told = event.data.get("seconds")
    return float(told) if isinstance(told, int | float) else None


def time_to_save_s(progress: Progress, grace_s: float) -> float:
    """Seconds to wait for workers that are to save and stop: the grace period, or longer where steps or saves are slow."""
    return max(grace_s, SLOWER * (max(progress.durations_s, default=0.0) + progress.save_s))


def observe_phase(progress: Progress, phase: Phase, now_s: float, *, is_foreign: bool = False) -> Progress:
    """The progress after a look at the job: a queue's time counts against nothing else.

    `is_foreign`: somebody else makes failed workers anew within the attempt; until all run, that is start-up.
    """
    if phase is Phase.QUEUED and progress.work is not Work.QUEUE:
        return replace(progress, work=Work.QUEUE, since_s=now_s)
    if phase is not Phase.QUEUED and progress.work is Work.QUEUE:
        return replace(progress, work=Work.STARTUP, since_s=now_s)
    if is_foreign and phase is Phase.STARTING and progress.work is not Work.STARTUP:
        return replace(progress, work=Work.STARTUP, since_s=now_s)
    return progress


def limit_s(progress: Progress, deadlines: Deadlines) -> float:
    """Seconds that the present work may take."""
    median = progress.median_step_s
    step_gap = max(deadlines.step_gap_s, deadlines.step_gap_factor * median if median else 0.0)
    if progress.step - progress.resumed_from < deadlines.compiling_steps:
        step_gap = max(step_gap, deadlines.first_step_s)
    table = {
        Work.QUEUE: deadlines.queue_s,
        Work.STARTUP: deadlines.startup_s,
        Work.MODEL_LOAD: deadlines.model_load_s,
        Work.FIRST_STEP: deadlines.first_step_s,
        Work.STEP: step_gap,
        Work.CHECKPOINT: deadlines.checkpoint_s,
        Work.VALIDATION: deadlines.validation_s,
        Work.EXIT: deadlines.exit_s,
    }
    return table[progress.work]


def passed_deadline(progress: Progress, deadlines: Deadlines, now_s: float) -> Passed | None:
    """The deadline that has passed, if one has."""
    waited, limit = now_s - progress.since_s, limit_s(progress, deadlines)
    return Passed(progress.work, limit, waited) if waited > limit else None
