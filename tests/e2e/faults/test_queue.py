"""Kueue, which HyperPod's task governance is made of: preempted for a higher priority, never admitted, its webhook away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.faults.conftest import Expect, MakeTrial
from tests.e2e.faults.fault_harness import NAMESPACE, apply, eventually, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1500)]

QUEUE, NARROW = "faults", "faults-narrow"
LOW, HIGH = "faults-low", "faults-high"


def queue(name: str, cpu: str) -> list[dict[str, Any]]:
    """Room for one training of these tests, or for none."""
    kueue = "kueue.x-k8s.io/v1beta1"
    quota = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "64Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": QUEUE, "resources": quota}]}
    return [
        {"apiVersion": kueue, "kind": "ResourceFlavor", "metadata": {"name": QUEUE}},
        {
            "apiVersion": kueue,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "resourceGroups": [group],
            },
        },
        {
            "apiVersion": kueue,
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"clusterQueue": name},
        },
    ]


@pytest.fixture(scope="module")
def queues(namespace: str) -> Iterator[None]:
    """A queue with room for one training, one without room, and two priorities."""
    if "kueue" not in kubectl("get", "crd", "-o", "name"):
        pytest.skip("Kueue is not installed")
    classes = [
        {
            "apiVersion": "kueue.x-k8s.io/v1beta1",
            "kind": "WorkloadPriorityClass",
            "metadata": {"name": name},
            "value": value,
        }
        for name, value in ((LOW, 1), (HIGH, 100))
    ]
    apply(*queue(QUEUE, "500m"), *queue(NARROW, "0"), *classes)
    yield
    kubectl("delete", "localqueue", "-n", NAMESPACE, QUEUE, NARROW, "--wait=false")
    kubectl("delete", "clusterqueue", QUEUE, NARROW, "--wait=false")
    kubectl("delete", "workloadpriorityclass", LOW, HIGH)


def in_queue(priority: str, name: str = QUEUE) -> dict[str, Any]:
    return {"cluster": {"queue": name, "priority": priority}}


@pytest.mark.usefixtures("queues")
def test_a_higher_priority_takes_the_place_and_the_lower_one_goes_on_from_its_checkpoint(
    trial: MakeTrial, expect: Expect
) -> None:
    low = trial("low", settings=in_queue(LOW), steps=200)
    first = low.start()
    low.when_step(5)
    high = trial("high", settings=in_queue(HIGH), steps=20, step_s=0.3)
    high.start()
    first.when_said("attempt 1 failed")
    assert high.supervisors[0].wait().get("attempts") == 1
    reads = "attempt 1 failed .*preempted.*something of higher priority took its place"
    expect("Kueue preempts it for a higher priority", low, classes=["preempted"], reads=reads)
    assert low.history()[1]["admitted_s"] is not None


@pytest.mark.usefixtures("queues")
def test_a_queue_that_never_admits_ends_at_the_queues_deadline(trial: MakeTrial, expect: Expect) -> None:
    settings = {**in_queue(LOW, NARROW), "deadlines": {"queue_s": 20}, "retry": {"max_without_progress": 2}}
    training = trial("never", settings=settings)
    training.start()
    reads = "nothing was heard for .* during queue"
    classes = ["unknown", "unknown"]
    expect("a queue that never admits", training, classes=classes, error="JobRetriesExhausted", reads=reads)


@pytest.mark.usefixtures("queues")
def test_a_job_that_is_cancelled_while_it_waits_in_the_queue(trial: MakeTrial, expect: Expect) -> None:
    training = trial("waits", settings=in_queue(LOW, NARROW))
    training.start().when_said("PyTorchJob")
    kind = "pytorchjobs.kubeflow.org"
    eventually(
        "it is queued", lambda: [item for item in training.objects(kind) if item["spec"]["runPolicy"]["suspend"]]
    )
    said = training.cancel()
    assert "its launcher begins no further attempt" in said, said
    assert "no checkpoint was complete yet" in said, said
    reads = "No further attempt: somebody cancelled or deleted the job"
    expect("cancelled while it waits in a queue", training, classes=["preempted"], error="JobCancelled", reads=reads)


@pytest.mark.usefixtures("queues")
def test_a_webhook_that_is_away_is_waited_for(trial: MakeTrial, expect: Expect) -> None:
    where = ["-n", "kueue-system", "scale", "deployment", "kueue-controller-manager"]
    kubectl(*where, "--replicas=0")
    try:
        pods = ["-n", "kueue-system", "get", "pods", "-o", "name"]
        eventually("Kueue is away", lambda: not kubectl(*pods))
        training = trial("webhook", steps=6)
        training.start().when_said("trying again")
        time.sleep(5)
    finally:
        kubectl(*where, "--replicas=1")
    reads = "failed calling webhook .*trying again"
    expect("Kueue's webhook is away when a job is created", training, classes=[], reads=reads)
