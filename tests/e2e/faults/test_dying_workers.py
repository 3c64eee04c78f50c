"""What a worker can do wrong: die, exit, eat all memory, hang. Played by the worker without torch, in real pods."""

from __future__ import annotations

import json

import pytest

from tests.e2e.faults.conftest import Expect, MakeTrial
from tests.e2e.faults.fault_harness import kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

RETRIED = {
    64: False,
    65: False,
    66: True,
    70: False,
    75: True,
    76: True,
    77: True,
    78: True,
    79: True,
    1: True,
    139: True,
}
CLASS = {
    64: "user",
    65: "config",
    66: "storage",
    70: "user",
    75: "unknown",
    76: "accelerator",
    77: "network",
    78: "hang",
    79: "node",
    1: "unknown",
    139: "unknown",
}
HEARD = "nothing was heard for .* during step; the limit is 20 s"


@pytest.mark.smoke
@pytest.mark.parametrize("rank", [0, 1], ids=["rank 0", "another rank"])
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(trial: MakeTrial, expect: Expect, rank: int) -> None:
    training = trial(f"kill{rank}")
    training.start()
    training.when_step(5)
    training.kill_rank(rank)
    expect(f"worker kill -9 (rank {rank})", training, classes=["unknown"], reads=rf"rank {rank} .*killed by SIGKILL")
    assert len(training.history()) == 2


@pytest.mark.parametrize("code", RETRIED)
def test_an_exit_code_of_the_table_without_a_record(trial: MakeTrial, expect: Expect, code: int) -> None:
    training = trial(f"exit{code}", nodes=1, acts={"1": {"rank": 0, "step": 5, "act": f"exit {code}"}})
    training.start()
    error = "" if RETRIED[code] else "JobPermanentError"
    expect(
        f"worker exits with {code}",
        training,
        classes=[CLASS[code]],
        error=error,
        reads="rank 0 .*was killed by SIGSEGV" if code == 139 else f"rank 0 exited with code {code}",
    )


def test_a_node_with_a_broken_accelerator_is_left_out_at_once(trial: MakeTrial, expect: Expect) -> None:
    """What follows where no other node has room is in tests/job/test_broken_hardware.py."""
    acts = {"1": {"rank": 0, "step": 5, "act": "abort NRT_EXEC_HW_ERR_HBM_UE"}}
    training = trial("broken", nodes=1, later_step_s=0.3, acts=acts)
    training.start()
    training.when_step(8, attempt=2)
    assert training.pod()["spec"]["nodeName"] != training.history()[0]["node"] != ""
    expect(
        "broken hardware: the Neuron runtime aborts a worker; its node is left out at once",
        training,
        classes=["accelerator"],
        reads=r"NRT_EXEC_HW_ERR_HBM_UE.* without ",
    )


@pytest.mark.smoke
def test_a_failure_record_speaks_for_the_worker(trial: MakeTrial, expect: Expect) -> None:
    training = trial("record", nodes=1, acts={"1": {"rank": 0, "step": 5, "act": "record user 64"}})
    training.start()
    ended = expect(
        "worker fails with a record",
        training,
        classes=["user"],
        error="JobPermanentError",
        reads="RuntimeError: it broke",
    )
    assert "line of the trace" in ended["message"]


def test_memory_beyond_the_limit_is_tried_once_more_then_named(trial: MakeTrial, expect: Expect) -> None:
    training = trial("oom", acts={"*": {"rank": 1, "step": 6, "act": "eat"}})
    training.start()
    expect(
        "worker uses more memory than its limit",
        training,
        classes=["out_of_memory", "out_of_memory"],
        error="JobPermanentError",
        reads="lower --micro-batch",
        lost_at_most=4,
    )


def test_a_rank_that_hangs_is_found_and_its_stack_is_kept(trial: MakeTrial, expect: Expect) -> None:
    settings = {"deadlines": {"step_gap_s": 20}}
    training = trial("hang", settings=settings, acts={"1": {"rank": 0, "step": 5, "act": "hang"}})
    training.start()
    expect("a rank hangs", training, classes=["hang"], reads=HEARD)
    assert "sleep_for_ever" in (training.directory.attempt(1) / "evidence" / "stack-0.txt").read_text()


def test_workers_that_ignore_the_wish_to_stop_are_killed(trial: MakeTrial, expect: Expect) -> None:
    settings = {"deadlines": {"step_gap_s": 20, "grace_s": 5}}
    training = trial("deaf", nodes=1, settings=settings, acts={"1": {"rank": 0, "step": 5, "act": "deaf"}})
    training.start()
    expect(
        "a rank hangs and ignores SIGTERM",
        training,
        classes=["hang"],
        reads="nothing was heard for .* during step; the limit is 20 s",
    )


def test_a_worker_whose_clock_is_a_day_behind_changes_nothing(trial: MakeTrial, expect: Expect) -> None:
    training = trial("clock", clock_shift_s=-86400.0, acts={"1": {"rank": 1, "step": 5, "act": "crash"}})
    training.start()
    expect(
        "worker's clock a day behind, and it dies",
        training,
        classes=["unknown"],
        reads="rank 1 .*was killed by SIGKILL",
    )


def test_a_pod_that_is_told_to_stop_saves_within_its_grace(trial: MakeTrial, expect: Expect) -> None:
    """As a drain does: SIGTERM to one pod's first process, then SIGKILL after the grace."""
    training = trial("drain", save_every=100, meet_s=20)
    training.start()
    training.when_step(5)
    kubectl("-n", training.namespace, "delete", "pod", training.pod(0)["metadata"]["name"], "--wait=false")
    expect(
        "SIGTERM with grace (a pod is drained)",
        training,
        classes=["preempted"],
        reads="attempt 1 failed .*its pod was deleted from outside",
        lost_at_most=0,
    )
    second = training.events(2)
    assert second[0].step >= 5, json.dumps([event.kind for event in second])
