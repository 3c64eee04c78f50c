"""What comes and goes while a training runs: the API, the operator, a kubelet, the cluster's DNS, the run directory, a node."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.e2e.faults.cluster_parts import (
    flap_api,
    node_away,
    read_only,
    restart_kubelet,
    restart_operator,
    standing_still,
)
from tests.e2e.faults.conftest import Expect, MakeTrial
from tests.e2e.faults.fault_harness import apply, eventually, kubectl
from tests.e2e.faults.test_training import PATIENT, TINY

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1500)]

AWAY_S = 60.0
FLAPS, FLAP_S = 12, 5.0
"""Two minutes."""
NOTICED_S = 30.0
"""From a worker's death to the first line of the evidence about it."""


def test_a_kubelet_that_restarts_costs_nothing(trial: MakeTrial, expect: Expect) -> None:
    training = trial("kubelet")
    training.start()
    training.when_step(5)
    restart_kubelet(training.pod(0)["spec"]["nodeName"])
    ended = expect("a kubelet restarts", training, classes=[], reads="is over")
    assert ended["attempts"] == 1


def test_an_operator_that_restarts_in_the_middle_costs_nothing(trial: MakeTrial, expect: Expect) -> None:
    training = trial("opagain")
    training.start()
    training.when_step(5)
    restart_operator()
    ended = expect("the operator is restarted in the middle", training, classes=[], reads="is over")
    assert ended["attempts"] == 1


def test_an_api_that_comes_and_goes_hides_no_death(trial: MakeTrial, expect: Expect) -> None:
    acts = {"1": {"rank": 0, "step": 40, "act": "crash"}}
    training = trial("flaps", steps=300, later_step_s=0.5, acts=acts)
    training.start()
    training.when_step(5)
    flap_api(FLAPS, FLAP_S)
    reads = "attempt 1 failed .*rank 0 .*was killed by SIGKILL"
    ended = expect(
        "the API comes and goes every 5 s for two minutes, and a worker dies",
        training,
        classes=["unknown"],
        reads=reads,
    )
    assert ended["attempts"] == 2
    evidence = training.directory.attempt(1) / "evidence" / "snapshot.json"
    assert evidence.stat().st_mtime - training.events(1)[-1].time_s < NOTICED_S


def test_a_dns_that_is_away_at_the_start_delays_it(trial: MakeTrial, expect: Expect) -> None:
    training = trial("dns", steps=12)
    with standing_still("coredns"):
        training.start()
        eventually(
            "both pods run",
            lambda: [item["status"]["phase"] for item in training.objects("pods")] == ["Running", "Running"],
        )
        training.supervisors[0].when_said("waits for the name", AWAY_S)
        time.sleep(AWAY_S / 2)
        assert not training.events(1)
    reads = "waits for the name .*the cluster's DNS does not answer"
    expect("the cluster's DNS is away for 60 s at the start", training, classes=[], reads=reads)


def test_a_run_directory_that_turns_read_only_for_a_minute(trial: MakeTrial, expect: Expect) -> None:
    settings = {**PATIENT, "cluster": {**PATIENT["cluster"], "lease_s": 300}}
    training = trial("readonly", settings=settings)
    training.training = {**TINY, "max_steps": 100}
    supervisor = training.start()
    eventually("it trains", lambda: any(event.step >= 3 for event in training.events(1)), limit_s=600)
    with read_only(training.directory.path):
        supervisor.when_said("tried again until half of the lease (150 s) is gone")
        time.sleep(AWAY_S)
    supervisor.when_said("the run directory works again")
    expect(
        "the run directory is read-only for 60 s (real training)",
        training,
        classes=["storage"],
        reads="the file system is read-only.*tried again until half of the lease",
        lost_at_most=60,
    )


def test_a_node_that_dies_inside_a_checkpoint_leaves_one_that_is_never_used(trial: MakeTrial, expect: Expect) -> None:
    acts = {"1": {"rank": 0, "step": 6, "act": "half"}}
    training = trial("commit", acts=acts)
    supervisor = training.start()
    eventually("it saves", lambda: [item for item in training.events(1) if item.kind == "checkpoint_begin"][2:])
    with node_away(training.pod(0)["spec"]["nodeName"]):
        supervisor.when_said("attempt 1 failed", 200)
        eventually("attempt 2 trains", lambda: training.events(2), limit_s=200)
    assert training.events(2)[0].step == 4
    expect(
        "worker 0's node dies inside a checkpoint commit",
        training,
        classes=["node"],
        reads="attempt 1 failed .*its node failed.*from step 4 of 60",
    )


BUDGET = "keeps-workers"


def drain(node: str, *, timeout_s: int) -> subprocess.CompletedProcess[str]:
    """As a person does before maintenance."""
    options = ["--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={timeout_s}s"]
    return subprocess.run(["kubectl", "drain", node, *options], capture_output=True, text=True, timeout=600)


def test_a_node_that_is_drained_under_a_disruption_budget(trial: MakeTrial, expect: Expect) -> None:
    training = trial("budget", save_every=100, meet_s=20)
    supervisor = training.start()
    training.when_step(5)
    run, value = training.selector.split("=")
    metadata = {"name": BUDGET, "namespace": training.namespace}
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata}
    apply({**budget, "spec": {"minAvailable": 2, "selector": {"matchLabels": {run: value}}}})
    node = training.pod(1)["spec"]["nodeName"]
    try:
        refused = drain(node, timeout_s=15)
        assert "violate the pod's disruption budget" in refused.stderr, refused
        assert supervisor.process.poll() is None
        assert not training.history()[0]["failure_class"]
        kubectl("-n", training.namespace, "delete", "poddisruptionbudget", BUDGET)
        done = drain(node, timeout_s=120)
        assert done.returncode == 0, done
        training.when_step(8, attempt=2)
        assert node not in [item["spec"]["nodeName"] for item in training.objects("pods")]
    finally:
        kubectl("uncordon", node)
        kubectl("-n", training.namespace, "delete", "poddisruptionbudget", BUDGET, "--ignore-not-found")
    expect(
        "a node is cordoned and drained; a PodDisruptionBudget holds it back for a while",
        training,
        classes=["preempted"],
        reads="attempt 1 failed .*preempted",
        lost_at_most=0,
    )
