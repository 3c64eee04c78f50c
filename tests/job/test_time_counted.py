"""What counts against `deadlines.total_s`: time in which something of ours ran or was wanted outside a queue, nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from steps.errors import JobError
from steps.job import progress as deadlines
from steps.job.progress import Spent, Work
from steps.job.snapshot import JobSnapshot, Phase
from steps.job.supervise import Outside, supervise
from steps.protocol.events import Event
from steps.settings.config import Deadlines
from tests.job.job_fakes import Attempt
from tests.job.test_supervise import Stage, fail_with, hang_at, succeed

DAY_S = 86400.0


def queued_first(script: Callable[[Attempt, int], None]) -> Callable[[Attempt, int], None]:
    """An attempt that waits in a queue at its first look."""

    def play(attempt: Attempt, look: int) -> None:
        attempt.snapshot = JobSnapshot(Phase.QUEUED if look == 0 else Phase.RUNNING, remaining=1)
        if look:
            script(attempt, look - 1)

    return play


def long_first_sleep(stage: Stage, seconds: float) -> Callable[[float], None]:
    """A sleep whose first call takes that long."""
    left = [seconds]

    def sleep(given: float) -> None:
        stage.clock.sleep(left.pop() if left else given)

    return sleep


def test_four_days_in_a_queue_cost_no_retry(tmp_path: Path) -> None:
    stage = Stage(tmp_path, queued_first(fail_with("unknown", 137, saves=4)), succeed, deadlines={"total_s": 2 * DAY_S})
    result = stage.run(sleep=long_first_sleep(stage, 4 * DAY_S))
    first, second = stage.history["attempts"]
    assert result.attempts == 2
    assert first["spent_s"] + second["spent_s"] < 100
    assert first["ready_s"] < 10
    assert result.account["queue_s"] == pytest.approx(4 * DAY_S, abs=10)


def test_the_next_attempts_way_to_its_first_step_is_looked_ahead_without_the_queue(tmp_path: Path) -> None:
    limits = {"total_s": 1000.0}
    stage = Stage(tmp_path, queued_first(fail_with("network", 77, saves=4)), succeed, deadlines=limits)
    assert stage.run(sleep=long_first_sleep(stage, 5000.0)).attempts == 2


def test_days_between_a_dead_launcher_and_resume_do_not_count(tmp_path: Path) -> None:
    def go_on(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
            attempt.train(1, 4)
        if attempt.clock() > DAY_S:
            attempt.train(5, 10)
            attempt.finish()

    stage = Stage(tmp_path, go_on, deadlines={"total_s": 300.0})

    def die(seconds: float) -> None:
        stage.clock.sleep(seconds)
        if stage.clock() > 1060:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.run(sleep=die)
    stage.clock.now_s += 8 * DAY_S
    assert stage.run().attempts == 1
    assert 40 <= stage.history["attempts"][0]["spent_s"] < 80


def test_what_was_used_before_the_launcher_died_counts(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(4), deadlines={"total_s": 100.0, "step_gap_s": 1000.0})

    def die(seconds: float) -> None:
        stage.clock.sleep(seconds)
        if stage.clock() > 1090:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.run(sleep=die)
    stage.clock.now_s += DAY_S
    before_s = stage.clock()
    with pytest.raises(JobError, match=r"of 100 s \(deadlines.total_s\)"):
        stage.run()
    assert stage.clock() - before_s < 60


@pytest.mark.parametrize("at_reading", range(4))
def test_a_wall_clock_that_jumps_by_a_month_makes_no_long_account(tmp_path: Path, at_reading: int) -> None:
    stage = Stage(tmp_path, fail_with("node", 75, saves=4), succeed)
    readings = 0

    def wall() -> float:
        nonlocal readings
        readings += 1
        return stage.clock() + (30 * DAY_S if readings > at_reading else 0.0)

    result = supervise(
        stage.job, stage.launcher, stage.settings, Outside(clock=stage.clock, wall=wall, sleep=stage.clock.sleep)
    )
    assert result.account["total_s"] < 100


def test_a_long_lease_is_advanced_as_often_as_a_short_one_needs_it(tmp_path: Path) -> None:
    changed: dict[str, float] = {}

    def script(attempt: Attempt, look: int) -> None:
        changed.setdefault((stage.job.directory.attempt(1) / "lease").read_text(), attempt.clock())
        if look == 700:
            succeed(attempt, 0)
            succeed(attempt, 1)

    stage = Stage(tmp_path, script, deadlines={"startup_s": 1000})
    supervise(
        stage.job,
        stage.launcher,
        stage.settings,
        Outside(clock=stage.clock, wall=stage.clock, sleep=stage.clock.sleep),
        lease_s=14_400,
    )
    times = list(changed.values())
    assert len(times) > 2
    assert max(later - sooner for sooner, later in itertools.pairwise(times)) <= 21


def test_a_person_who_resumes_begins_to_count_anew_without_a_verdict_too(tmp_path: Path) -> None:
    stage = Stage(tmp_path, *[fail_with("network", 77)] * 3, succeed)

    def interrupt_after_two(seconds: float) -> None:
        stage.clock.sleep(seconds)
        if len(stage.launcher.attempts) == 2 and stage.launcher.attempts[2].snapshot.is_over:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(sleep=interrupt_after_two)
    assert stage.run(retry_permanent=True).attempts == 4
    assert stage.history["forgiven"] == 2


def test_an_attempt_that_runs_when_a_person_resumes_still_counts(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("network", 77), hang_at(2), *[fail_with("network", 77)] * 3)

    def die_in_the_second(seconds: float) -> None:
        stage.clock.sleep(seconds)
        if len(stage.launcher.attempts) == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.run(sleep=die_in_the_second)
    stage.launcher.attempts[2].record("network", 77)
    with pytest.raises(JobError, match="3 attempts in a row"):
        stage.run(retry_permanent=True)
    assert (stage.history["forgiven"], len(stage.history["attempts"])) == (1, 4)


def test_only_time_outside_a_queue_is_counted() -> None:
    spent = Spent(100.0, total_s=5.0)
    spent.begin_attempt(110.0, before_s=3.0)
    spent.advance(120.0, is_queued=True)
    spent.advance(121.0)
    assert (spent.total_s, spent.attempt_s, spent.queued_s) == (16.0, 4.0, 10.0)


def test_workers_made_anew_within_an_attempt_begin_a_new_count() -> None:
    limits = Deadlines(compiling_steps=2, first_step_s=7200, step_gap_s=600)
    progress = deadlines.begin(0.0)
    for kind, step in (("started", 0), ("first_step", 1), ("step", 2), ("step", 3), ("stopping", 3), ("started", 3)):
        progress = deadlines.advance(progress, Event(kind, 0.0, 1, step, {"seconds": 1.0}), 10.0)
    assert (progress.stopping, progress.durations_s, progress.resumed_from) == ("", (), 3)
    progress = deadlines.advance(progress, Event("first_step", 0.0, 1, 4, {}), 20.0)
    assert progress.work is Work.STEP
    assert deadlines.limit_s(progress, limits) == 7200


def test_while_somebody_else_replaces_a_node_it_is_start_up() -> None:
    progress = deadlines.advance(deadlines.begin(0.0), Event("step", 0.0, 1, 5, {}), 10.0)
    assert deadlines.observe_phase(progress, Phase.STARTING, 50.0).work is Work.STEP
    waiting = deadlines.observe_phase(progress, Phase.STARTING, 50.0, is_foreign=True)
    assert (waiting.work, waiting.since_s) == (Work.STARTUP, 50.0)
    assert deadlines.observe_phase(waiting, Phase.STARTING, 90.0, is_foreign=True).since_s == 50.0
    assert deadlines.advance(waiting, Event("step", 0.0, 1, 6, {}), 99.0).work is Work.STEP
