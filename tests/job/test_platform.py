"""What a platform refuses, or cannot tell for a while: told at once; final only where it cannot pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steps.errors import JobPermanentError, JobRetriesExhausted
from steps.job.job import Job
from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from tests.job.job_fakes import Attempt, Script
from tests.job.test_supervise import Stage, fail_with, succeed

WORDS = 'FailedCreatePod: pods "x" is forbidden: violates PodSecurity "restricted:latest"'


def refused(*, lifted_at: int | None = None) -> Script:
    """No pod comes, until the rule is lifted at that look."""

    def script(attempt: Attempt, look: int) -> None:
        if lifted_at is not None and look >= lifted_at:
            succeed(attempt, min(look - lifted_at, 1))
            if look == lifted_at:
                attempt.snapshot = JobSnapshot(Phase.RUNNING, remaining=1)
            return
        attempt.snapshot = JobSnapshot(Phase.FAILED, (), Reason.CONFIG, WORDS, 1, is_refused=True)

    return script


def stage(folder: Path, *scripts: Script) -> Stage:
    made = Stage(folder, *scripts, deadlines={"startup_s": 60})
    made.job = replace(made.job, nodes=2, node_choices=(2, 1))
    return made


def test_a_first_attempt_that_is_refused_is_final_at_once(tmp_path: Path) -> None:
    made = stage(tmp_path, refused())
    begun_s = made.clock()
    with pytest.raises(JobPermanentError, match="violates PodSecurity"):
        made.run()
    assert made.clock() - begun_s < 5


def test_a_rule_that_is_tightened_in_the_middle_is_told_once_and_waited_for(tmp_path: Path) -> None:
    made = stage(tmp_path, fail_with("network", 77, saves=4), refused(lifted_at=100))
    assert made.run().attempts == 2
    said = [line for line in made.notices if "this rule is new: it is waited for" in line]
    assert len(said) == 1
    assert WORDS in said[0]


def test_a_rule_that_stays_costs_a_start_at_a_time_and_no_node(tmp_path: Path) -> None:
    made = stage(tmp_path, fail_with("network", 77, saves=4), *[refused()] * 3)
    begun_s = made.clock()
    with pytest.raises(JobRetriesExhausted, match="violates PodSecurity"):
        made.run()
    assert made.clock() - begun_s > 3 * 60
    told = [(item["failure_class"], item["nodes"], item["is_at_start"]) for item in made.history["attempts"]]
    assert told == [("network", 2, False), *[("config", 2, True)] * 3]


def test_a_platform_that_cannot_be_asked_while_workers_leave_ends_nothing(tmp_path: Path) -> None:
    """Its API is away for longer than `deletion_s`: what is left is not known, so nobody says that it is too long."""
    made = stage(tmp_path, fail_with("network", 77, saves=4), succeed)
    launcher, left = made.launcher, JobSnapshot(Phase.FAILED, remaining=3)
    read, gone_s = launcher.read, made.clock() + 600

    def silent(job: Job, attempt: int) -> JobSnapshot:
        found = read(job, attempt)
        if attempt > 1 or not found.is_over or made.clock() > gone_s:
            return found
        return replace(left, workers=found.workers, silent_s=1.0)

    launcher.read = silent  # type: ignore[method-assign]
    assert made.run().attempts == 2
    assert made.clock() > gone_s


def test_a_start_is_not_judged_while_the_platform_cannot_be_asked(tmp_path: Path) -> None:
    """What it said last, for longer than `startup_s`, may be mended by now."""
    waits = WorkerState(0, "w-0", reason=Reason.IMAGE, message="ImagePullBackOff", may_pass=True)

    def script(attempt: Attempt, look: int) -> None:
        away = JobSnapshot(Phase.STARTING, (waits,), remaining=2, silent_s=60.0)
        attempt.snapshot = away if look < 1000 else JobSnapshot(Phase.RUNNING, remaining=2)
        if look >= 1000:
            succeed(attempt, min(look - 1000, 1))

    made = stage(tmp_path, script)
    begun_s = made.clock()
    assert made.run().attempts == 1
    assert made.clock() - begun_s > 60


def waits(*, until: int) -> Script:
    """All nodes run, and the second one cannot resolve the first one's name for so many looks."""

    def script(attempt: Attempt, look: int) -> None:
        words = attempt.job.directory.files(attempt.number).node(1).waiting
        if look < until:
            words.parent.mkdir(parents=True, exist_ok=True)
            words.write_text("j-worker-1 on node-7 waits for the name j-worker-0")
            return
        words.unlink(missing_ok=True)
        succeed(attempt, min(look - until, 1))

    return script


@pytest.mark.parametrize(("looks", "times"), [(400, 1), (100, 0)])
def test_a_node_that_waits_for_another_is_told_of_once(tmp_path: Path, looks: int, times: int) -> None:
    """After 20 s: a look is taken every 0.1 s."""
    made = Stage(tmp_path, waits(until=looks))
    assert made.run().attempts == 1
    said = [line for line in made.notices if "j-worker-1 on node-7 waits for the name j-worker-0" in line]
    assert len(said) == times
