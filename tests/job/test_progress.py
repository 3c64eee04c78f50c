"""Which deadline applies when, by the supervisor's clock alone."""

from __future__ import annotations

from typing import Any

import pytest

from steps.job.progress import (
    AFTER,
    REMEMBERED_STEPS,
    Passed,
    Progress,
    Work,
    advance,
    begin,
    limit_s,
    observe_phase,
    passed_deadline,
)
from steps.job.snapshot import Phase
from steps.protocol.events import KINDS, Event
from steps.settings.config import Deadlines

LIMITS = Deadlines(
    queue_s=1, startup_s=2, model_load_s=3, first_step_s=4, step_gap_s=50, step_gap_factor=10, checkpoint_s=6,
    validation_s=7, exit_s=8,
)  # fmt: skip


def after(*kinds: str, seen_s: float = 0.0, **data: Any) -> Progress:
    progress = begin(0.0)
    for step, kind in enumerate(kinds):
        progress = advance(progress, Event(kind, 1e9, 1, step, data), seen_s)  # type: ignore[arg-type]
    return progress


@pytest.mark.parametrize(
    ("kinds", "work", "limit"),
    [
        pytest.param([], Work.STARTUP, 2, id="nothing heard"),
        pytest.param(["started"], Work.MODEL_LOAD, 3, id="started"),
        pytest.param(["started", "model_loaded"], Work.FIRST_STEP, 4, id="loaded"),
        pytest.param(["started", "first_step"], Work.STEP, 50, id="first step done"),
        pytest.param(["step"], Work.STEP, 50, id="training"),
        pytest.param(["step", "checkpoint_begin"], Work.CHECKPOINT, 6, id="saving"),
        pytest.param(["step", "checkpoint_begin", "checkpoint"], Work.STEP, 50, id="saved"),
        pytest.param(["step", "validation_begin"], Work.VALIDATION, 7, id="validating"),
        pytest.param(["step", "validation_begin", "validation"], Work.STEP, 50, id="validated"),
        pytest.param(["step", "finished"], Work.EXIT, 8, id="finished"),
        pytest.param(["step", "stopping"], Work.EXIT, 8, id="stopping"),
        pytest.param(["stopping", "checkpoint_begin"], Work.CHECKPOINT, 6, id="saving on the way out"),
        pytest.param(["stopping", "checkpoint_begin", "checkpoint"], Work.EXIT, 8, id="saved on the way out"),
    ],
)
def test_deadline_follows_the_last_event(kinds: list[str], work: Work, limit: float) -> None:
    progress = after(*kinds)
    assert (progress.work, limit_s(progress, LIMITS)) == (work, limit)
    assert passed_deadline(progress, LIMITS, limit) is None
    passed = passed_deadline(progress, LIMITS, limit + 0.1)
    assert passed is not None
    assert (passed.work, passed.limit_s) == (work, limit)


def test_a_word_on_a_validation_does_not_move_its_deadline() -> None:
    begun = after("step", "validation_begin")
    assert advance(begun, Event("validation_progress", 0.0, 1, 1, {"done": 1, "of": 2}), 5.0) == begun


def test_every_event_kind_has_a_next_deadline() -> None:
    assert set(AFTER) == set(KINDS)


def test_step_gap_grows_with_the_runs_own_pace() -> None:
    assert limit_s(after(*["step"] * 3, seconds=30.0), LIMITS) == 50
    assert limit_s(after(*["step"] * 6, seconds=30.0), LIMITS) == 300


def test_pace_is_taken_from_what_was_seen_when_the_worker_does_not_tell() -> None:
    progress = begin(0.0)
    for step in range(1, 8):
        progress = advance(progress, Event("step", -5.0, 1, step), step * 20.0)
    assert progress.median_step_s == 20.0


def test_steps_remembered_are_bounded() -> None:
    assert len(after(*["step"] * 1000, seconds=1.0).durations_s) == REMEMBERED_STEPS


def test_workers_clock_is_never_looked_at() -> None:
    progress = advance(begin(100.0), Event("started", -1e12, 1, 0), 105.0)
    assert passed_deadline(progress, LIMITS, 107.0) is None
    assert passed_deadline(progress, LIMITS, 109.0) is not None


def test_queue_stops_the_startup_clock() -> None:
    queued = observe_phase(begin(0.0), Phase.QUEUED, 1.0)
    assert (queued.work, queued.since_s) == (Work.QUEUE, 1.0)
    assert observe_phase(queued, Phase.QUEUED, 5.0) is queued
    admitted = observe_phase(queued, Phase.STARTING, 9.0)
    assert (admitted.work, admitted.since_s) == (Work.STARTUP, 9.0)
    assert observe_phase(admitted, Phase.RUNNING, 10.0) is admitted


def test_progress_remembers_what_matters() -> None:
    progress = begin(0.0)
    story = [
        ("started", 4, {"of": 10, "world": 2}),
        ("first_step", 5, {}),
        ("step", 6, {}),
        ("checkpoint", 6, {}),
        ("finished", 6, {"result": "r"}),
    ]
    for kind, step, data in story:
        progress = advance(progress, Event(kind, 0.0, 1, step, dict(data)), float(step))  # type: ignore[arg-type]
    assert (progress.resumed_from, progress.of, progress.step, progress.complete_step) == (4, 10, 6, 6)
    assert (progress.trained_at_s, progress.started, progress.finished) == (
        5.0,
        {"of": 10, "world": 2},
        {"result": "r"},
    )


@pytest.mark.parametrize(
    ("work", "expected"),
    [(Work.STEP, "hang"), (Work.EXIT, "hang"), (Work.CHECKPOINT, "storage"), (Work.STARTUP, "unknown")],
)
def test_passed_deadline_has_a_class(work: Work, expected: str) -> None:
    assert Passed(work, 1, 2).failure_class == expected


def test_the_first_steps_may_compile_again() -> None:
    patient = LIMITS.model_copy(update={"first_step_s": 4000.0, "compiling_steps": 2})
    assert [limit_s(after(*["step"] * count), patient) for count in (2, 3)] == [4000.0, 50]
    assert limit_s(after("step"), LIMITS) == 50


@pytest.mark.parametrize("of", ["many", [], {}, -1, None, 1.5, "NaN"])
def test_a_damaged_started_event_ends_no_supervisor(of: Any) -> None:
    progress = advance(begin(0.0), Event("started", 0.0, 1, 3, {"of": of}), 1.0)
    assert (progress.work, progress.step, progress.of) == (Work.MODEL_LOAD, 3, 0)
