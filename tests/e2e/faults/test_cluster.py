"""What a whole cluster can suffer: API, operator, nodes, network. These tests run alone."""

from __future__ import annotations

import time

import pytest

from tests.e2e.faults.cluster_parts import api_away, node_away, standing_still
from tests.e2e.faults.conftest import Expect, MakeTrial
from tests.e2e.faults.fault_harness import Trial, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(1200)]

OUTAGE_S = 60.0


def test_an_api_that_is_away_for_a_minute_costs_nothing_and_a_death_meanwhile_is_seen_afterwards(
    trial: MakeTrial, expect: Expect
) -> None:
    calm = trial("api", steps=160)
    dying = trial("apidie", steps=160, acts={"1": {"rank": 0, "step": 30, "act": "crash"}})
    for training in (calm, dying):
        training.start()
    for training in (calm, dying):
        training.when_step(5)
    with api_away():
        time.sleep(OUTAGE_S)
    expect("a worker dies while the API is away", dying, classes=["unknown"], reads="rank 0 .*was killed by SIGKILL")
    reads = "the Kubernetes API has not answered for .*: the workers go on, and it is waited for"
    expect("the API is away for 60 s", calm, classes=[], reads=reads)
    assert any("the Kubernetes API answers again" in line for line in calm.supervisors[0].said())
    assert len(calm.history()) == 1


def test_an_operator_that_is_away_hides_no_death_and_only_delays_a_start(trial: MakeTrial, expect: Expect) -> None:
    dying, new = trial("operator"), trial("opstart", steps=6)
    supervisor = dying.start()
    dying.when_step(5)
    with standing_still("training-oper"):
        starting = new.start()
        dying.kill_rank(0)
        supervisor.when_said("attempt 1 failed", 60)
        starting.when_said("the Training Operator has taken no notice of PyTorchJob")
    reads = "rank 0 .*was killed by SIGKILL"
    expect("the operator is away while a worker dies", dying, classes=["unknown"], reads=reads)
    reads = "the Training Operator has taken no notice of PyTorchJob .* is it running"
    expect("the operator is away when a job is created", new, classes=[], reads=reads)


@pytest.mark.slow
def test_a_node_that_dies_and_comes_back(trial: MakeTrial, expect: Expect) -> None:
    """Its pod stays Terminating for as long as it is away: nobody waits for that."""
    training = trial("node", steps=400)
    supervisor = training.start()
    training.when_step(5)
    node = training.pod(1)["spec"]["nodeName"]
    with node_away(node):
        supervisor.when_said("attempt 1 failed", 200)
        eventually("attempt 2 trains", lambda: training.events(2), limit_s=120)
    reads = "attempt 1 failed .*its node failed"
    expect("a node dies, and comes back", training, classes=["node"], reads=reads, lost_at_most=400)


@pytest.mark.slow
def test_an_old_attempt_that_comes_back_from_a_partition_harms_nothing(trial: MakeTrial, expect: Expect) -> None:
    """Cut off, but not from the shared file system: its keeper hears there that it is to end, and its worker is deaf."""
    settings = {"cluster": {"lease_s": 600}, "deadlines": {"grace_s": 60}}
    training = trial("partition", nodes=1, steps=400, later_step_s=0.2, settings=settings, deafness=True)
    supervisor = training.start()
    training.when_step(5)
    with node_away(training.pod(0)["spec"]["nodeName"], cut=True):
        supervisor.when_said("attempt 1 failed", 200)
        eventually("attempt 2 trains", lambda: training.events(2), limit_s=120)
        before = len(training.events(1))
        eventually("the old one still writes", lambda: len(training.events(1)) > before + 3, limit_s=30)
        ended = training.directory.attempt(1) / "nodes" / "000" / "exit.json"
        eventually("its keeper ends it", ended.exists, limit_s=120)
    expect(
        "a cut-off node's worker goes on writing beside the next attempt",
        training,
        classes=["node"],
        reads="attempt 1 failed .*its node failed",
        lost_at_most=400,
    )
    assert writers_of(training) >= {"002-01"}


def writers_of(training: Trial) -> set[str]:
    """Claims whose checkpoints are there."""
    return {path.name.split(".")[-1] for path in training.directory.checkpoints.iterdir()}
