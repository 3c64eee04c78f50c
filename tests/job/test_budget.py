"""What a training may use of the cluster: told at 80 %, stopped with its work saved at 100 %, and gone on with by a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steps.errors import ConfigError, JobBudgetSpent
from steps.job.budget import Budget, budget_of
from steps.settings.config import Settings, parse_settings
from tests.job.job_fakes import Attempt
from tests.job.test_supervise import Stage, fail_with, succeed
from tests.job.test_time_counted import long_first_sleep, queued_first


def never_done(attempt: Attempt, look: int) -> None:
    if look == 0:
        attempt.start()
        attempt.train(1, 4)
        attempt.save(4)


def test_node_hours_are_those_of_all_nodes() -> None:
    budget = Budget(10.0, "10", before=4.0, nodes=4)
    assert budget.used(3600.0) == 8.0
    assert not budget.is_spent(5399.0)
    assert budget.is_spent(5400.0)


def test_without_a_limit_nothing_is_ever_spent_or_told() -> None:
    budget = budget_of(Settings())
    assert not budget.is_spent(1e12)
    assert budget.warning(1e12) == ""


@pytest.mark.parametrize(
    ("node_hours", "cost", "hours", "word"),
    [
        (10, 0, 10, "limits.node_hours"),
        (10, 50, 2, "limits.cost"),
        (1, 50, 1, "limits.node_hours"),
        (0, 50, 2, "50 USD"),
    ],
)
def test_the_tighter_limit_holds(node_hours: float, cost: float, hours: float, word: str) -> None:
    limits = {"node_hours": node_hours, "cost": cost}
    found = budget_of(Settings.model_validate({"prices": {"node_hour": 25}, "limits": limits}))
    assert found.node_hours == hours
    assert word in found.limit


def test_money_without_a_price_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"limits\.cost: needs prices\.node_hour"):
        parse_settings({"limits": {"cost": 5}})


def test_it_is_told_at_80_percent_once_and_stopped_at_100(tmp_path: Path) -> None:
    stage = Stage(tmp_path, never_done, deadlines={"step_gap_s": 1e6}, limits={"node_hours": 0.1})
    with pytest.raises(JobBudgetSpent) as failed:
        stage.run()
    warned = [sentence for sentence in stage.notices if "limits.node_hours" in sentence]
    assert len(warned) == 1
    assert "0.08" in warned[0]
    assert "delete 1 60 after evidence" in stage.launcher.calls
    assert "the checkpoint of step 4 is kept" in str(failed.value)
    assert "--continue-from" in str(failed.value)
    assert stage.history["verdict"]["kind"] == "budget"
    assert 360 <= stage.history["attempts"][0]["spent_s"] < 365


def test_it_binds_until_a_person_goes_on_and_then_as_much_is_given_again(tmp_path: Path) -> None:
    limits = {"deadlines": {"step_gap_s": 1e6}, "limits": {"node_hours": 0.1}}
    stage = Stage(tmp_path, never_done, succeed, **limits)
    with pytest.raises(JobBudgetSpent):
        stage.run()
    with pytest.raises(JobBudgetSpent, match="remembered"):
        stage.run()
    assert stage.run(retry_permanent=True).step == 10


def test_attempts_of_earlier_supervisors_and_all_nodes_count(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path, fail_with("network", 77, saves=2), never_done, deadlines={"step_gap_s": 1e6}, limits={"node_hours": 1}
    )
    stage.job = replace(stage.job, nodes=4)
    with pytest.raises(JobBudgetSpent):
        stage.run()
    first, second = stage.history["attempts"]
    assert first["spent_s"] + second["spent_s"] == pytest.approx(900, abs=10)


def test_a_failed_attempt_is_not_followed_by_another_when_nothing_is_left(tmp_path: Path) -> None:
    def fails_late(attempt: Attempt, look: int) -> None:
        if look == 0:
            never_done(attempt, 0)
        if attempt.clock() > 1360:
            attempt.record("network", 77, step=4)

    stage = Stage(tmp_path, fails_late, succeed, deadlines={"step_gap_s": 1e6}, limits={"node_hours": 0.1})
    with pytest.raises(JobBudgetSpent):
        stage.run()
    assert len(stage.history["attempts"]) == 1


def test_a_queue_costs_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, queued_first(succeed), limits={"node_hours": 0.1})
    assert stage.run(sleep=long_first_sleep(stage, 1e5)).step == 10
    assert not any("limits." in sentence for sentence in stage.notices)
