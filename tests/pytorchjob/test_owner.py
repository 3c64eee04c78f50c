"""Who owns the job: the workflow of the launching pod, never the pod or its batch Job, and nobody elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from steps.pytorchjob.owner import find_owner

INSIDE = {"METAFLOW_KUBERNETES_POD_NAME": "loraflow-x1-train-1"}


def reference(kind: str, *, controller: bool = True) -> dict[str, Any]:
    version = {"Workflow": "argoproj.io/v1alpha1", "Job": "batch/v1"}.get(kind, "v1")
    return {"apiVersion": version, "kind": kind, "name": "one", "uid": "u-1", "controller": controller}


def pod(*owners: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "loraflow-x1-train-1", "ownerReferences": list(owners)}}


def test_the_pod_s_workflow_owns_the_job() -> None:
    asked: list[str] = []

    def read(name: str) -> dict[str, Any]:
        asked.append(name)
        return pod(reference("Workflow"))

    assert find_owner(INSIDE, read) == {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "name": "one",
        "uid": "u-1",
        "controller": False,
        "blockOwnerDeletion": False,
    }
    assert asked == ["loraflow-x1-train-1"]


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        pytest.param({}, pod(reference("Workflow")), id="outside of a pod"),
        pytest.param(
            INSIDE, pod(reference("Job")), id="one try's batch Job, which is removed before its successor's job"
        ),
        pytest.param(INSIDE, None, id="a pod that may not be read"),
        pytest.param(INSIDE, pod(), id="a pod without owner"),
        pytest.param(INSIDE, pod(reference("Pod")), id="owned by a pod"),
        pytest.param(INSIDE, pod(reference("Workflow", controller=False)), id="owned, not controlled"),
        pytest.param(INSIDE, {}, id="nothing told"),
    ],
)
def test_without_such_a_controller_nobody_does(environment: dict[str, str], found: dict[str, Any] | None) -> None:
    assert find_owner(environment, lambda name: found) is None
