"""The preflight against a real Kueue, with the shipped example of a queue: what it can admit, and what it never could."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient

from tests.e2e.preflight_cluster import (
    EXAMPLE,
    PROJECT,
    Objects,
    apply,
    client_of,
    kubectl,
    look,
    made_namespace,
    sentences,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    if "kueue.x-k8s.io" not in kubectl("api-versions"):
        pytest.skip("Kueue is not installed")
    with made_namespace() as made:
        yield made


@pytest.fixture(scope="module")
def api(space: str) -> ApiClient:
    return client_of(space)


@pytest.fixture
def example(space: str) -> Iterator[Objects]:
    """config/cluster/queue-example.yaml, for this namespace."""
    text = (PROJECT / "config/cluster/queue-example.yaml").read_text(encoding="utf-8").replace(EXAMPLE, space)
    objects = [item for item in yaml.safe_load_all(text) if item]
    apply(*objects)
    active = "jsonpath={.status.conditions[?(@.type=='Active')].status}=True"
    for item in objects:
        if item["kind"] in ("ClusterQueue", "LocalQueue"):
            where = ["-n", item["metadata"]["namespace"]] if "namespace" in item["metadata"] else []
            kubectl("wait", f"--for={active}", f"{item['kind']}/{item['metadata']['name']}", *where, "--timeout=30s")
    yield objects
    for item in reversed(objects):
        where = ["-n", item["metadata"]["namespace"]] if "namespace" in item["metadata"] else []
        kubectl("delete", item["kind"], item["metadata"]["name"], *where, "--ignore-not-found", "--wait=false")


def named(objects: Objects, kind: str) -> dict[str, Any]:
    return next(item for item in objects if item["kind"] == kind)


def asked(objects: Objects) -> dict[str, str]:
    """What the Config says for the example's queue."""
    found = {"queue": named(objects, "LocalQueue")["metadata"]["name"]}
    classes = [item for item in objects if item["kind"] == "WorkloadPriorityClass"]
    return {**found, "priority": classes[0]["metadata"]["name"]} if classes else found


def test_the_shipped_example_of_a_queue_can_admit_the_job(api: ApiClient, space: str, example: Objects) -> None:
    found = look(api, space, **asked(example))
    assert [item.message for item in found if item.severity == "error"] == []
    assert any(item.check == "queue" and "is active, and its quota holds the job" in item.message for item in found)


def test_a_queue_and_a_priority_that_are_not_there_are_named(api: ApiClient, space: str) -> None:
    found = " ".join(sentences(look(api, space, queue="none-such", priority="no-priority")))
    assert f"there is no LocalQueue none-such in namespace {space}" in found
    assert "there is no WorkloadPriorityClass no-priority" in found


def test_a_quota_that_can_never_hold_the_job_is_refused(api: ApiClient, space: str, example: Objects) -> None:
    queue = named(example, "ClusterQueue")
    for group in queue["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            for item in flavor["resources"]:
                item["nominalQuota"] = 1
    apply(queue)
    found = [item.message for item in look(api, space, **asked(example)) if item.severity == "error"]
    assert any("can never admit the job" in item and "aws.amazon.com/neuron" in item for item in found), found
