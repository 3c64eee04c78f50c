"""Fewer nodes than asked: after the startup deadline the next attempt takes the largest allowed number of those that came up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steps.errors import JobCancelled, JobRetriesExhausted
from steps.job.retry import fewer_nodes
from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from tests.job.job_fakes import Attempt, Script
from tests.job.test_supervise import Stage, succeed

NO_ROOM = "0/4 nodes are available: 2 Insufficient aws.amazon.com/neuron"


def starts(number: int, of: int) -> Script:
    """Some pods run, the others wait for room."""

    def script(attempt: Attempt, look: int) -> None:
        up = [WorkerState(index, f"w-{index}", f"node-{index}", started_s=1.0) for index in range(number)]
        wait = [
            WorkerState(index, f"w-{index}", reason=Reason.UNSCHEDULABLE, message=NO_ROOM)
            for index in range(number, of)
        ]
        attempt.snapshot = JobSnapshot(Phase.STARTING, (*up, *wait), message=NO_ROOM, remaining=of + 1)

    return script


def stage(folder: Path, *scripts: Script, nodes: int = 4, choices: tuple[int, ...] = (4, 3, 2)) -> Stage:
    made = Stage(folder, *scripts, deadlines={"startup_s": 60})
    made.job = replace(made.job, nodes=nodes, node_choices=choices)
    return made


def nodes_of(made: Stage) -> list[int]:
    return [item["nodes"] for item in made.history["attempts"]]


@pytest.mark.parametrize(("started", "then"), [(3, 3), (2, 2), (0, 2)])
def test_the_next_attempt_takes_what_there_is(tmp_path: Path, started: int, then: int) -> None:
    made = stage(tmp_path, starts(started, 4), succeed)
    made.run()
    assert nodes_of(made) == [4, then]
    assert f"tiny-orders: going on with {then} of 4 nodes" in made.notices
    assert made.history["attempts"][0]["failure_class"] == "node"
    assert NO_ROOM in made.history["attempts"][0]["message"]


def test_a_start_that_was_late_although_every_node_came_up_costs_no_node(tmp_path: Path) -> None:
    made = stage(tmp_path, starts(4, 4), succeed)
    made.run()
    assert nodes_of(made) == [4, 4]


def test_without_a_choice_it_asks_for_the_same_again(tmp_path: Path) -> None:
    made = stage(tmp_path, starts(2, 4), succeed, choices=())
    made.run()
    assert nodes_of(made) == [4, 4]


def test_it_never_goes_below_the_smallest_number(tmp_path: Path) -> None:
    made = stage(tmp_path, starts(1, 4), starts(1, 2), starts(1, 2))
    with pytest.raises(JobRetriesExhausted, match="3 attempts in a row"):
        made.run()
    assert nodes_of(made) == [4, 2, 2]


def test_a_failure_of_another_kind_keeps_the_number(tmp_path: Path) -> None:
    made = stage(tmp_path, lambda attempt, look: attempt.end(137), succeed)
    made.run()
    assert nodes_of(made) == [4, 4]


def test_a_supervisor_that_comes_later_adopts_the_smaller_one(tmp_path: Path) -> None:
    """The history says how many nodes the open attempt asked for: its digest differs from that of all nodes."""

    def interrupted(attempt: Attempt, look: int) -> None:
        if look == 3:
            raise SystemExit

    made = stage(tmp_path, starts(2, 4), interrupted)
    with pytest.raises(SystemExit):
        made.run()
    made.launcher.scripts = [starts(2, 4), succeed]
    made.launcher.looks.clear()
    made.run()
    assert nodes_of(made) == [4, 2]
    assert "create 3" not in made.launcher.calls


@pytest.mark.parametrize(
    ("choices", "nodes", "started", "expected"),
    [((4, 3, 2), 4, 3, 3), ((4, 2), 4, 3, 2), ((4, 2), 4, 1, 2), ((4,), 4, 1, 4), ((), 4, 1, 4), ((4, 3, 2), 2, 1, 2)],
)
def test_fewer_nodes(choices: tuple[int, ...], nodes: int, started: int, expected: int) -> None:
    assert fewer_nodes(choices, nodes, started) == expected


def test_a_job_that_somebody_deleted_is_cancelled(tmp_path: Path) -> None:
    def vanish(attempt: Attempt, look: int) -> None:
        attempt.snapshot = JobSnapshot(Phase.GONE, (), Reason.CANCELLED)

    with pytest.raises(JobCancelled, match="deleted the job, which means: stop"):
        stage(tmp_path, vanish).run()
