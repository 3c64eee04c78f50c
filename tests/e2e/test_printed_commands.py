"""The kubectl lines that errors and findings print: each is run as it is printed, where it is printed for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from steps.pytorchjob.connection import load_client
from tests.e2e.faults.conftest import MakeTrial, namespace, shared, trial
from tests.e2e.preflight_cluster import apply, kubectl, look, made_namespace

__all__ = ["namespace", "shared", "trial"]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
COMMAND = re.compile(r"kubectl (?:'[^']*'|[^;,(`'])+")


def run_printed(text: str) -> list[str]:
    """Run each command in a text, with a value where a person puts one; all must do what they say."""
    commands = [found.strip() for found in COMMAND.findall(text)]
    for command in commands:
        words = ["timeout", "10", "bash", "-c", command.replace("…", "x")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or (done.returncode == 124 and " -f " in command), (command, done.stderr)
        assert done.stdout, command
    return commands


def wrong(space: str, **cluster: Any) -> str:
    """What the preflight says to do about errors."""
    found = look(load_client(""), space, **cluster)
    return "; ".join(item.fix for item in found if item.severity == "error")


@pytest.fixture
def space() -> Iterator[str]:
    with made_namespace() as made:
        yield made


def test_what_pods_name_is_made_as_the_preflight_says(space: str) -> None:
    named = {
        "token_secret": "hf",
        "service_account": "nobody",
        "volumes": [{"name": "settings", "mount_path": "/settings", "config_map": "settings"}],
    }
    assert len(run_printed(wrong(space, **named))) == 3
    assert "kubectl" not in wrong(space, **named)
    kubectl("delete", "secret", "hf", "-n", space)
    kubectl("create", "secret", "generic", "hf", "-n", space, "--from-literal=OTHER=x")
    assert len(run_printed(wrong(space, **named))) == 1
    assert "kubectl" not in wrong(space, **named)


def test_a_claim_that_is_not_bound_is_looked_at_as_the_preflight_says(space: str) -> None:
    spec = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "none",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    metadata = {"name": "pending", "namespace": space}
    apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
    assert len(run_printed(wrong(space, claim="pending"))) == 1


def test_a_missing_namespace_is_made_as_the_preflight_says(space: str) -> None:
    missing = f"{space}-b"
    try:
        assert f"kubectl create namespace {missing}" in run_printed(wrong(missing))
    finally:
        kubectl("delete", "namespace", missing, "--ignore-not-found", "--wait=false")


def test_queues_are_looked_at_as_the_preflight_says(space: str) -> None:
    if "kueue" not in kubectl("get", "crd", "-o", "name"):
        pytest.skip("Kueue is not installed")
    kind, metadata = "kueue.x-k8s.io/v1beta1", {"name": "here", "namespace": space}
    spec = {"clusterQueue": "nowhere", "stopPolicy": "Hold"}
    apply({"apiVersion": kind, "kind": "LocalQueue", "metadata": metadata, "spec": spec})
    assert f"kubectl get localqueues -n {space}" in run_printed(wrong(space, queue="elsewhere", priority=""))


@pytest.mark.alone
def test_a_cordoned_node_is_given_back_as_the_preflight_says(space: str) -> None:
    kubectl("cordon", "node-2")
    try:
        assert "kubectl uncordon node-2" in run_printed(wrong(space))
        assert "unschedulable" not in kubectl("get", "node", "node-2", "-o", "jsonpath={.spec}")
    finally:
        kubectl("uncordon", "node-2")


def test_a_job_is_looked_at_with_the_lines_that_the_launcher_prints(trial: MakeTrial) -> None:
    training = trial("printed", step_s=0.3)
    supervisor = training.start()
    training.when_step(2)
    printed = [line for line in supervisor.said() if line.strip().startswith("kubectl")]
    assert len(run_printed("; ".join(printed))) == 2
    job = training.objects("pytorchjobs.kubeflow.org")[0]["metadata"]["name"]
    where = f"kubectl -n {training.namespace}"
    assert run_printed(
        f"{where} get pytorchjob {job} -o yaml; kubectl get nodes; {where} delete pod --force {job}-worker-1"
    )
    assert supervisor.wait()["attempts"] == 2
