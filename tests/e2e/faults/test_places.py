"""Jobs that cannot start: no image, no room, no claim, no quota, a spec that the operator ignores; and fewer nodes than asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.faults.conftest import Expect, MakeTrial, make_namespace
from tests.e2e.faults.fault_harness import NAMESPACE, apply, eventually, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

SHORT = {"startup_s": 20}
"""For a job that can never start."""
ENOUGH = {"startup_s": 45}
"""For one of which an attempt has to start within it, on a busy machine too."""
DEVICES = {"instance_type": "trn1.32xlarge"}


def test_an_image_that_does_not_exist_stops_at_the_startup_deadline(trial: MakeTrial, expect: Expect) -> None:
    cluster = {"image": "localhost/no-such-image:1", "image_pull_policy": "Never"}
    settings = {"cluster": cluster, "deadlines": SHORT}
    training = trial("image", settings=settings)
    training.start()
    reads = "its image cannot be pulled"
    expect("an image that does not exist", training, classes=["image"], error="JobPermanentError", reads=reads)


def test_a_registry_that_does_not_answer_is_given_time_and_named(trial: MakeTrial, expect: Expect) -> None:
    cluster = {"image": "localhost/no-such-image:1"}
    training = trial(
        "registry", settings={"cluster": cluster, "deadlines": SHORT, "retry": {"max_without_progress": 2}}
    )
    training.start()
    reads = "Back-off pulling image|connection refused"
    classes = ["unknown", "unknown"]
    expect("a registry that does not answer", training, classes=classes, error="JobRetriesExhausted", reads=reads)


def test_a_claim_that_is_missing_stops_at_the_startup_deadline(trial: MakeTrial, expect: Expect) -> None:
    training = trial("claim", settings={"cluster": {"claim": "no-such-claim"}, "deadlines": SHORT})
    training.start()
    reads = 'persistentvolumeclaim "no-such-claim" not found'
    expect("the claim is missing", training, classes=["config"], error="JobPermanentError", reads=reads)


def test_a_secret_that_is_missing_stops_at_the_startup_deadline(trial: MakeTrial, expect: Expect) -> None:
    training = trial("secret", settings={"cluster": {"token_secret": "no-such-secret"}, "deadlines": SHORT})
    training.start()
    reads = 'secret "no-such-secret" not found'
    expect("the token's secret is missing", training, classes=["config"], error="JobPermanentError", reads=reads)


@pytest.mark.devices
def test_more_devices_than_there_are_says_so_at_every_deadline(trial: MakeTrial, expect: Expect) -> None:
    settings = {"deadlines": SHORT, "cluster": {**DEVICES, "nodes": 3}, "retry": {"max_without_progress": 2}}
    training = trial("devices", nodes=3, settings=settings)
    training.start()
    reads = r"no node has room for it .*Insufficient (aws.amazon.com/neuron|vpc.amazonaws.com/efa)"
    expect(
        "unschedulable: too many devices", training, classes=["node", "node"], error="JobRetriesExhausted", reads=reads
    )


@pytest.mark.devices
def test_with_too_few_nodes_it_goes_on_with_those_there_are(trial: MakeTrial, expect: Expect) -> None:
    settings = {"deadlines": ENOUGH, "cluster": {**DEVICES, "nodes": 3, "min_nodes": 1}}
    training = trial("fewer", nodes=3, settings=settings, steps=12)
    training.more = {"node_choices": [3, 2, 1]}
    training.start()
    expect("two of three nodes, min_nodes: 1", training, classes=["node"], reads="going on with 2 of 3 nodes")
    assert [item["nodes"] for item in training.history()] == [3, 2]


@pytest.mark.alone
def test_a_node_that_hyperpod_marks_in_the_middle_does_not_end_the_job(trial: MakeTrial, expect: Expect) -> None:
    """The label keeps new pods away; those that run are HyperPod's to move."""
    label = "sagemaker.amazonaws.com/node-health-status"
    settings = {
        "deadlines": ENOUGH,
        "cluster": {"instance_type": "trn1.32xlarge"},
        "retry": {"max_without_progress": 2},
    }
    training = trial("marked", settings=settings, later_step_s=0.5)
    training.start()
    training.when_step(5)
    node = training.pod(1)["spec"]["nodeName"]
    kubectl("label", "--overwrite", "node", node, f"{label}=UnschedulablePendingReplacement")
    try:
        training.kill_rank(1)
        reads = "attempt 2 failed .*(node affinity|selector)"
        supervisor = training.supervisors[-1]
        supervisor.when_said("attempt 2 failed", 300)
    finally:
        kubectl("label", "--overwrite", "node", node, f"{label}=Schedulable")
    expect(
        "a node turns Unschedulable in the middle, and its worker dies",
        training,
        classes=["node", "node"],
        reads=reads,
    )


def test_a_quota_that_forbids_the_pods_is_named_at_the_deadline(trial: MakeTrial, expect: Expect, shared: Path) -> None:
    """Not at once: what another job gives back may be enough."""
    tight = f"{NAMESPACE}-tight"
    make_namespace(tight, shared.parent)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight", "namespace": tight}}
    apply({**quota, "spec": {"hard": {"pods": "1"}}})
    status = ["-n", tight, "get", "resourcequota", "tight", "-o", "jsonpath={.status.hard}"]
    eventually("the quota is known", lambda: kubectl(*status))
    training = trial("quota", settings={"cluster": {"namespace": tight}, "deadlines": SHORT})
    training.namespace = tight
    training.start()
    reads = "its container cannot be created .*exceeded quota: tight"
    expect("a ResourceQuota forbids the pods", training, classes=["config"], error="JobPermanentError", reads=reads)


@pytest.mark.slow
def test_a_spec_that_the_operator_ignores_in_silence_is_named(trial: MakeTrial, expect: Expect) -> None:
    """Operator 1.7.0 has no webhook: a container of the wrong name is accepted, and nothing ever happens."""
    training = trial("ignored")
    training.more = {"container_name": "trainer"}
    training.start()
    reads = "PyTorchJobFailedValidation|has not taken notice"
    expect(
        "a spec that the operator rejects in silence",
        training,
        classes=["config"],
        error="JobPermanentError",
        reads=reads,
    )


def test_a_name_that_is_too_long_is_cut_and_still_runs(trial: MakeTrial, expect: Expect) -> None:
    training = trial("a-name-" + "that-goes-on-" * 6, steps=4)
    training.start()
    expect(
        "a name that is too long", training, classes=[], reads="PyTorchJob .*/a-name-that-goes-on-that-.*-a1: 2 node"
    )
    assert json.dumps(training.history())


def test_a_namespace_that_does_not_exist_is_named(trial: MakeTrial, expect: Expect) -> None:
    training = trial("nowhere", settings={"cluster": {"namespace": "hyperpod-ns-nowhere"}})
    training.namespace = "hyperpod-ns-nowhere"
    training.start()
    reads = 'namespaces "hyperpod-ns-nowhere" not found; is cluster.namespace right'
    expect("the namespace does not exist", training, classes=[], error="ClusterError", reads=reads)
