"""The preflight against a real API server, as the service account of config/cluster/rbac.yaml and nothing more."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes.client import ApiClient

from steps.errors import ClusterError
from steps.preflight.run import findings, require
from steps.preflight.survey import Target
from steps.pytorchjob.connection import load_client
from tests.e2e.preflight_cluster import (
    NAME,
    PROJECT,
    Objects,
    apply,
    client_of,
    kubectl,
    look,
    made_namespace,
    sentences,
    settings,
    shipped_rights,
    verbs_of,
    without,
)

pytestmark = pytest.mark.cluster
QUEUE_ONLY = frozenset({"localqueues", "workloads", "clusterqueues", "resourceflavors", "workloadpriorityclasses"})
"""Rights that matter only where a queue is configured."""
QUEUE = {"queue": "q", "priority": "p"}


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    with made_namespace() as made:
        yield made


@pytest.fixture(scope="module")
def api(space: str) -> ApiClient:
    return client_of(space)


@pytest.fixture(scope="module")
def rights(space: str) -> Objects:
    return shipped_rights(space)


@pytest.mark.smoke
def test_the_shipped_rights_are_enough_and_nothing_forbids_to_start(api: ApiClient, space: str) -> None:
    found = look(api, space)
    assert [item for item in found if item.severity == "error"] == []
    assert {item.check for item in found if item.severity == "ok"} >= {
        "permissions",
        "operator",
        "nodes",
        "claim",
        "job",
    }
    assert any(f"{space}:{NAME} may do all that a run does" in item.message for item in found)


def test_what_would_refuse_the_workers_pods_is_read_where_a_pod_may_not_be_tried() -> None:
    """And refused by the API server in the same words: an administrator, who may try one, is told so by it."""
    with made_namespace() as strict:
        kubectl("label", "namespace", strict, "pod-security.kubernetes.io/enforce=restricted")
        limits = [{"type": "Container", "max": {"memory": "100Mi"}}]
        metadata = {"name": "tight", "namespace": strict}
        apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": {"limits": limits}})
        ours = [item.message for item in look(client_of(strict), strict, run_as_user=0) if item.check == "pod"]
        tried = [item.message for item in look(load_client(""), strict, run_as_user=0) if item.check == "pod"]
        assert "PodSecurity level restricted refuses a worker's pod: container pytorch may run as root" in ours[0]
        assert "LimitRange tight refuses a worker's container: memory 0.5Gi is asked for" in ours[1]
        assert "the API server refuses a worker's pod" in tried[0]
        kubectl("delete", "limitrange", "tight", "-n", strict)
        assert not [item for item in look(client_of(strict), strict) if item.check == "pod" and item.severity != "ok"]
        assert not [item for item in look(load_client(""), strict) if item.check == "pod" and item.severity != "ok"]


def test_it_takes_less_than_ten_seconds(space: str) -> None:
    begun_s = time.monotonic()
    findings(Target(settings(space)))
    assert time.monotonic() - begun_s < 10


EACH_VERB = verbs_of(shipped_rights("any"))


@pytest.mark.parametrize(
    ("kind", "verb", "resource"), EACH_VERB, ids=[f"{verb} {resource}" for _, verb, resource in EACH_VERB]
)
def test_each_verb_of_the_role_when_taken_away_is_the_one_that_is_named(
    api: ApiClient, space: str, rights: Objects, kind: str, verb: str, resource: str
) -> None:
    """As the account itself, where it needs no queue; and as an administrator who asks about it."""
    asked = {"as itself": (api, {})} if resource not in QUEUE_ONLY else {}
    asked["as an administrator"] = (load_client(""), {"steps": {"enabled": True, "service_account": NAME}, **QUEUE})
    before = {who: sentences(look(client, space, **cluster)) for who, (client, cluster) in asked.items()}
    with changed_role(rights, without(rights, kind, verb, resource)):
        for who, (client, cluster) in asked.items():
            new = sentences(look(client, space, **cluster)) - before[who]
            new = {item for item in new if " are free now: " not in item}  # others' pods come and go meanwhile
            assert len(new) == 1, (who, new)
            assert f" may not {verb} {resource}" in next(iter(new)), who


@contextmanager
def changed_role(rights: Objects, role: dict[str, Any]) -> Iterator[None]:
    """That role instead of the shipped one."""
    apply(role)
    try:
        yield
    finally:
        apply(next(item for item in rights if item["kind"] == role["kind"]))


def test_an_account_without_any_right_still_gets_findings_and_no_crash(space: str) -> None:
    found = look(client_of(space, "default"), space)
    words = " ".join(sentences(found))
    assert "default may not create, get, list, delete pytorchjobs" in words
    assert "may not list nodes" in words
    assert "may not get persistentvolumeclaims" in words


def test_start_is_refused_with_all_errors_in_one_message(space: str) -> None:
    told: list[str] = []
    target = Target(settings(space, claim="other", nodes=3, token_secret="hf"))
    with pytest.raises(ClusterError) as caught:
        require(target, notice=told.append)
    message = str(caught.value)
    assert f"the cluster cannot run this job (namespace {space})" in message
    for words in ("there is no claim other", "2 of 3 nodes can take a worker", "there is no secret hf", "3 errors"):
        assert words in message
    assert all(line.startswith("preflight: ") for line in told)


def test_a_claim_that_is_not_bound_or_not_shared_is_refused(space: str) -> None:
    with made(waiting_claim(space, "waiting", "ReadWriteOnce")):
        assert any(
            "waiting is Pending, not Bound" in item for item in sentences(look(load_client(""), space, claim="waiting"))
        )


def waiting_claim(space: str, name: str, mode: str) -> dict[str, Any]:
    spec = {"accessModes": [mode], "storageClassName": "none-such", "resources": {"requests": {"storage": "1Gi"}}}
    meta = {"name": name, "namespace": space}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


@contextmanager
def made(thing: dict[str, Any]) -> Iterator[None]:
    meta = thing["metadata"]
    apply(thing)
    try:
        yield
    finally:
        kubectl("delete", thing["kind"], meta["name"], "-n", meta["namespace"], "--wait=false", "--ignore-not-found")


@pytest.mark.parametrize(
    ("hard", "words"),
    [
        (
            {"requests.aws.amazon.com/neuron": "16"},
            "can never hold the job (2 workers): requests.aws.amazon.com/neuron 32 of 16",
        ),
        ({"count/pytorchjobs.kubeflow.org": "0"}, "exceeded quota"),
        ({"pods": "1"}, "can never hold the job (2 workers): pods 2 of 1"),
    ],
    ids=["devices", "jobs", "pods"],
)
def test_a_quota_that_is_too_small_is_refused(space: str, hard: dict[str, str], words: str) -> None:
    thing = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": space},
        "spec": {"hard": hard},
    }
    with made(thing):
        kubectl("wait", "--for=jsonpath={.status.hard}", "resourcequota/small", "-n", space, "--timeout=20s")
        found = sentences(look(load_client(""), space))
        assert any(item.startswith("error") and words in item for item in found), found


def test_a_limit_range_that_forbids_the_worker_is_told_by_the_dry_run_of_its_pod(space: str) -> None:
    limits = {"limits": [{"type": "Container", "max": {"memory": "128Mi"}}]}
    meta = {"name": "tiny", "namespace": space}
    with made({"apiVersion": "v1", "kind": "LimitRange", "metadata": meta, "spec": limits}):
        found = sentences(look(load_client(""), space))
        assert any("error pod: the API server refuses a worker's pod" in item and "128Mi" in item for item in found), (
            found
        )


def test_pod_security_that_forbids_the_worker_is_told_by_the_dry_run_of_its_pod(space: str) -> None:
    label = "pod-security.kubernetes.io/enforce"
    kubectl("label", "namespace", space, f"{label}=restricted", "--overwrite")
    try:
        found = sentences(look(load_client(""), space))
        assert any("violates PodSecurity" in item for item in found), found
    finally:
        kubectl("label", "namespace", space, f"{label}-")


def test_the_token_s_secret_is_looked_into_where_that_is_allowed_and_its_value_is_never_shown(space: str) -> None:
    meta = {"name": "hf", "namespace": space}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"WRONG": "hf_verysecret"}}
    with made(secret):
        found = look(load_client(""), space, token_secret="hf")
        assert any("secret hf (cluster.token_secret) has no key HF_TOKEN" in item for item in sentences(found))
        assert "verysecret" not in repr(found)


def test_who_may_not_read_secrets_is_told_that_it_is_not_known(api: ApiClient, space: str) -> None:
    assert any(
        "not known whether these exist" in item and "secret hf" in item
        for item in sentences(look(api, space, token_secret="hf"))
    )


def test_a_node_that_hyperpod_takes_out_is_named(space: str) -> None:
    """Another label is asked for instead of spoiling a node that other tests may be using."""
    asked = {"node_selector": {"sagemaker.amazonaws.com/instance-group-name": "none-such"}}
    found = sentences(look(load_client(""), space, **asked))
    assert any("sagemaker.amazonaws.com/instance-group-name is trainium, not none-such" in item for item in found), (
        found
    )


def test_a_worker_larger_than_a_node_is_refused(space: str) -> None:
    found = sentences(look(load_client(""), space, memory_gib=4000))
    assert any("has too little for one worker: memory 4000Gi of" in item for item in found), found


@pytest.mark.devices
def test_nodes_that_others_use_are_told_with_the_pods_that_hold_them(space: str) -> None:
    resources = {"limits": {"aws.amazon.com/neuron": "1"}}
    container = {"name": "hold", "image": "localhost/pause:1", "imagePullPolicy": "Never", "resources": resources}
    meta = {"name": "holder", "namespace": space}
    with made({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}):
        kubectl("wait", "--for=condition=PodScheduled", "pod/holder", "-n", space, "--timeout=60s")
        found = sentences(look(load_client(""), space))
        assert any(item.startswith("warning nodes") and f"{space}/holder" in item for item in found), found


def test_a_namespace_that_is_not_there_is_told(space: str) -> None:
    found = sentences(look(load_client(""), f"{space}-not"))
    assert any(f"there is no namespace {space}-not" in item for item in found), found


def test_a_queue_without_kueue_is_refused(space: str) -> None:
    if "kueue.x-k8s.io" in kubectl("api-versions"):
        pytest.skip("Kueue is installed here")
    assert any("Kueue is not installed" in item for item in sentences(look(load_client(""), space, queue="q")))


@pytest.mark.timeout(300)
def test_it_runs_from_inside_a_pod_as_the_pod_s_own_account(space: str) -> None:
    """With the virtual environment and the sources of this machine, mounted at the same places."""
    config = {
        "storage": {"root": "/fsx/runs", "cache": "/fsx/cache"},
        "launcher": {"kind": "pytorchjob"},
        "cluster": {**settings(space).cluster.model_dump(mode="json"), "mount_path": "/fsx"},
    }
    code = (
        "import json, sys; from steps.cli.preflight import preflight; preflight(['--config', '/dev/stdin', '--json'])"
    )
    folders = {"environment": sys.prefix, "python": sys.base_prefix, "sources": str(PROJECT)}
    container = {
        "name": "look",
        "image": os.environ.get("LORA_E2E_IMAGE", "localhost/hyperpod-lora:mounted"),
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", f"echo '{json.dumps(config)}' | exec {sys.prefix}/bin/python -c \"{code}\""],
        "env": [{"name": "PYTHONPATH", "value": str(PROJECT)}, {"name": "HOME", "value": "/tmp"}],
        "volumeMounts": [
            *({"name": name, "mountPath": path, "readOnly": True} for name, path in folders.items()),
            {"name": "shared", "mountPath": "/fsx"},
        ],
    }
    spec = {
        "serviceAccountName": NAME,
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [
            *({"name": name, "hostPath": {"path": path}} for name, path in folders.items()),
            {"name": "shared", "persistentVolumeClaim": {"claimName": "fsx-claim"}},
        ],
    }
    with made({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "look", "namespace": space}, "spec": spec}):
        ended = "--for=jsonpath={.status.containerStatuses[0].state.terminated}"
        kubectl("wait", ended, "pod/look", "-n", space, "--timeout=110s")
        said = kubectl("logs", "look", "-n", space)
    assert said.startswith("["), said
    found = {(item["check"], item["severity"]): item["message"] for item in json.loads(said)}
    assert f"as system:serviceaccount:{space}:{NAME}" in found["api", "ok"]
    assert "may do all that a run does" in found["permissions", "ok"]
    assert re.match(r"/fsx(/runs)? can be written from here", found["mount", "ok"]), "the nearest folder that is there"
    assert not [key for key in found if key[1] == "error"]
