"""The wall clock is set back while a job runs: nothing is waited for, nothing is lost, no account is negative."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.errors import JobTimeout
from steps.job.supervise import JobResult, Outside, supervise
from tests.job.test_supervise import Stage, fail_with, hang_at, succeed

DAY_S = 86400.0


def run_set_back(stage: Stage, *, at_look: int, by_s: float) -> JobResult:
    """Supervise with a wall clock that goes back at one of its readings; the monotonic one goes on."""
    looks = 0

    def wall() -> float:
        nonlocal looks
        looks += 1
        return stage.clock() - (by_s if looks > at_look else 0.0)

    return supervise(
        stage.job,
        stage.launcher,
        stage.settings,
        Outside(notice=stage.notices.append, clock=stage.clock, wall=wall, sleep=stage.clock.sleep),
    )


@pytest.mark.parametrize("at_look", range(6))
def test_a_wall_clock_set_back_at_any_moment_changes_no_decision(tmp_path: Path, at_look: int) -> None:
    stage = Stage(tmp_path, fail_with("node", 75, saves=4), succeed)
    result = run_set_back(stage, at_look=at_look, by_s=DAY_S)
    assert (result.attempts, result.step) == (2, 10)
    assert "starts in 5 s from step 4 of 10" in stage.notices[0]
    pieces = {key: value for key, value in result.account.items() if key.endswith("_s") and key != "total_s"}
    assert min(pieces.values()) >= 0, pieces
    assert sum(pieces.values()) == pytest.approx(result.account["total_s"], abs=0.01)


def test_the_total_deadline_follows_the_monotonic_clock(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(2), deadlines={"total_s": 60, "step_gap_s": 1000})
    with pytest.raises(JobTimeout):
        run_set_back(stage, at_look=1, by_s=DAY_S)
    assert stage.clock() < 1000 + 200


def test_a_later_supervisor_with_an_earlier_clock_goes_on(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(2), succeed, deadlines={"total_s": 60, "step_gap_s": 1000})
    with pytest.raises(JobTimeout):
        stage.run()
    stage.clock.now_s -= DAY_S
    assert stage.run(retry_permanent=True).attempts == 2
