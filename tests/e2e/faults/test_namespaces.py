"""What happens to a whole namespace: two flows in one, deleted under a training, its rules tightened in the middle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.faults.conftest import Expect, MakeTrial, make_namespace
from tests.e2e.faults.fault_harness import NAMESPACE, Trial, eventually, kubectl
from tests.e2e.faults.test_admission import limit_range, restrict
from tests.e2e.faults.test_training import PATIENT, TINY

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]

Within = Callable[[Trial, str], Trial]


@pytest.fixture
def within(shared: Path) -> Iterator[Within]:
    """Put a training into a namespace of its own, which is removed afterwards."""
    made: list[str] = []

    def move(training: Trial, name: str) -> Trial:
        made.append(f"{NAMESPACE}-{name}")
        make_namespace(made[-1], shared.parent)
        training.namespace = made[-1]
        return training

    yield move
    for name in made:
        kubectl("delete", "namespace", name, "--ignore-not-found")
        kubectl("delete", "persistentvolume", f"{name}-shared", "--ignore-not-found")


def test_two_flows_of_the_same_model_and_data_do_not_meet(trial: MakeTrial, expect: Expect) -> None:
    both = [trial(name, nodes=1, settings=PATIENT) for name in ("same-one", "same-two")]
    for training in both:
        training.training = {**TINY, "max_steps": 40}
        training.more = {"label": "tiny-same"}
        training.start()
    for training in both:
        assert training.supervisors[0].wait().get("attempts") == 1, training.supervisors[0].said()
    jobs = {line for training in both for line in training.supervisors[0].said() if "PyTorchJob" in line}
    assert len(jobs) == 2
    assert len({training.directory.path.name for training in both}) == 1, "of the same identity"
    for training in both:
        expect(
            "two flows of the same model and data in one namespace",
            training,
            classes=[],
            reads="PyTorchJob .*-a1: 1 node",
        )
    first, second = ((item.directory.adapter / "adapter_model.safetensors").read_bytes() for item in both)
    assert first == second


def test_a_namespace_that_is_deleted_means_stop(trial: MakeTrial, expect: Expect, within: Within) -> None:
    training = within(trial("gone"), "gone")
    training.start()
    training.when_step(5)
    kubectl("delete", "namespace", training.namespace, "--wait=false")
    expect(
        "the namespace is deleted (kubectl delete ns)",
        training,
        classes=["preempted"],
        error="JobCancelled",
        reads="No further attempt: somebody cancelled or deleted the job, which means: stop",
    )
    left = ["get", "namespace", training.namespace, "-o", "name", "--ignore-not-found"]
    eventually("the namespace is gone", lambda: not kubectl(*left), limit_s=150)


NEW = "such workers have trained before, so this rule is new"


def test_pod_security_that_is_tightened_in_the_middle_and_loosened_again(
    trial: MakeTrial, expect: Expect, within: Within
) -> None:
    training = within(trial("tight"), "tightened")
    supervisor = training.start()
    training.when_step(5)
    restrict(training.namespace)
    training.kill_rank(1)
    supervisor.when_said(NEW)
    kubectl("label", "namespace", training.namespace, "pod-security.kubernetes.io/enforce-")
    ended = expect(
        "PodSecurity is tightened in the middle of a training, a worker dies, and it is loosened again",
        training,
        classes=["unknown"],
        reads=f"violates PodSecurity .*{NEW}",
    )
    assert ended["attempts"] == 2


def test_a_limit_range_that_is_tightened_in_the_middle_and_stays(
    trial: MakeTrial, expect: Expect, within: Within
) -> None:
    settings = {"deadlines": {"startup_s": 45}, "retry": {"max_without_progress": 2}}
    training = within(trial("limit", settings=settings), "limited")
    training.start()
    training.when_step(5)
    limit_range(training.namespace, max={"memory": "100Mi"})
    training.kill_rank(1)
    ended = expect(
        "a LimitRange is tightened in the middle of a training, a worker dies, and it stays",
        training,
        classes=["unknown", "config", "config"],
        error="JobRetriesExhausted",
        reads=f"maximum memory usage per Container is 100Mi.*{NEW}",
    )
    assert "maximum memory usage" in json.dumps(ended)
