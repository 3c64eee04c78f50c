"""The manifests against a real API server: each is accepted, and the rights are those that the files promise.

Needs kubectl and KUBECONFIG of somebody who may do everything; works in a namespace of its own and removes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.config_cluster.manifests import (
    FILES,
    FOLDER,
    NAMESPACE,
    OF_ARGO_PODS,
    OF_METAFLOW_ARGO,
    OF_METAFLOW_RUN,
    OF_THE_CLUSTER_ROLE,
    OF_THE_ROLE,
    objects,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster"),
]
CLUSTER_WIDE = (
    "trn1-32xlarge",
    "training-priority",
    "experiment-priority",
)
"""Names of objects that belong to no namespace: another for each test run, so that nobody else's are touched."""


def kubectl(*words: str, manifest: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", *words], input=manifest, capture_output=True, text=True, check=False, timeout=60)


def done(*words: str, manifest: str = "") -> str:
    result = kubectl(*words, manifest=manifest)
    assert result.returncode == 0, f"kubectl {' '.join(words)}: {result.stderr}"
    return result.stdout


def for_namespace(path: Path, namespace: str) -> str:
    """The file as somebody would have edited it."""
    text = path.read_text()
    for name in CLUSTER_WIDE:
        text = text.replace(name, f"{name}-{namespace}")
    return text.replace(f"{NAMESPACE}-{namespace}", NAMESPACE).replace(NAMESPACE, namespace)


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"trial-{uuid.uuid4().hex[:8]}"
    done("apply", "-f", "-", manifest=for_namespace(FOLDER / "namespace.yaml", name))
    yield name
    kubectl("delete", "-f", "-", "--ignore-not-found", manifest=for_namespace(FOLDER / "rbac.yaml", name))
    done("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def rights(namespace: str) -> str:
    for stem in ("rbac", "rbac-metaflow"):
        done("apply", "-f", "-", manifest=for_namespace(FOLDER / f"{stem}.yaml", namespace))
    return namespace


def is_known(path: Path) -> bool:
    """Does this cluster know the kinds of that file? (Kueue's are known only where Kueue is installed.)"""
    known = done("api-versions").split()
    return all(item["apiVersion"] in known for item in objects(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_api_server_accepts_the_file(path: Path, namespace: str) -> None:
    if not is_known(path):
        pytest.skip(f"{path.name}: not all of its kinds are installed here")
    said = done("apply", "--dry-run=server", "-f", "-", manifest=for_namespace(path, namespace))
    assert len(said.splitlines()) == len(objects(path))


Wish = tuple[str, str]
"""A resource as kubectl names it, and a verb."""


def review(wish: Wish, namespace: str, *, who: str, name: str = "", team: str = "") -> str:
    """The question to the API itself, as the account of the pods or as somebody of the team's group of people."""
    resource, _, group = wish[0].partition(".")
    resource, _, subresource = resource.partition("/")
    attributes = {"verb": wish[1], "group": group, "resource": resource, "subresource": subresource, "name": name}
    subject = (
        {"user": f"system:serviceaccount:{namespace}:hyperpod-lora", "groups": ["system:authenticated"]}
        if who == "pods"
        else {"user": "somebody", "groups": ["system:authenticated", f"hyperpod-lora-users-{team or namespace}"]}
    )
    attributes = {key: value for key, value in (attributes | {"namespace": namespace}).items() if value}
    spec = subject | {"resourceAttributes": attributes}
    return json.dumps({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})


def refused(wishes: list[Wish], namespace: str, *, who: str, name: str = "", team: str = "") -> list[Wish]:
    """Those of the wishes that are not granted."""
    manifest = "\n".join(review(wish, namespace, who=who, name=name, team=team) for wish in wishes)
    answers = done("create", "-f", "-", "-o", 'jsonpath={.status.allowed}{"\\n"}', manifest=manifest).split()
    assert len(answers) == len(wishes)
    return [wish for wish, answer in zip(wishes, answers, strict=True) if answer != "true"]


def wishes(*tables: dict[str, set[str]]) -> list[Wish]:
    return [(resource, verb) for table in tables for resource, verbs in table.items() for verb in sorted(verbs)]


OURS, ARGO, LAUNCHING = wishes(OF_THE_ROLE), wishes(OF_ARGO_PODS), wishes(OF_METAFLOW_RUN, OF_METAFLOW_ARGO)
NEVER = [
    ("secrets", "get"),
    ("pytorchjobs.kubeflow.org", "patch"),
    ("pytorchjobs.kubeflow.org", "update"),
    ("pods", "delete"),
    ("pods/exec", "create"),
    ("nodes", "patch"),
]


@pytest.mark.parametrize(
    ("who", "granted", "denied"),
    [("pods", OURS + ARGO, LAUNCHING + NEVER), ("people", OURS + LAUNCHING, ARGO + NEVER)],
    ids=["pods", "people"],
)
def test_a_right_is_had_exactly_by_whom_the_files_give_it_to(
    who: str, granted: list[Wish], denied: list[Wish], rights: str
) -> None:
    assert refused(granted, rights, who=who) == []
    assert refused(denied, rights, who=who) == denied


def test_the_rights_end_at_the_namespace(rights: str) -> None:
    assert refused(OURS, "default", who="people", team=rights) == OURS


@pytest.mark.parametrize("resource", sorted(OF_THE_CLUSTER_ROLE))
def test_a_right_outside_of_namespaces_is_had(resource: str, rights: str) -> None:
    one = "pytorchjobs.kubeflow.org" if resource.startswith("customresourcedefinitions") else ""
    assert refused(wishes({resource: OF_THE_CLUSTER_ROLE[resource]}), "", who="people", name=one, team=rights) == []


def test_two_teams_neither_share_rights_nor_lose_them_with_each_other(rights: str) -> None:
    other = f"{rights}-two"
    nodes = wishes({"nodes": {"get", "list"}})
    done("apply", "-f", "-", manifest=for_namespace(FOLDER / "namespace.yaml", other))
    try:
        done("apply", "-f", "-", manifest=for_namespace(FOLDER / "rbac.yaml", other))
        assert refused(OURS, other, who="people") == []
        assert refused(OURS, other, who="people", team=rights) == OURS
        done("delete", "-f", "-", manifest=for_namespace(FOLDER / "rbac.yaml", other))
        assert refused(nodes, "", who="people", team=other) == nodes
        assert refused(nodes, "", who="people", team=rights) == []
        assert refused(OURS, rights, who="people") == []
    finally:
        done("delete", "namespace", other, "--wait=false")


def test_the_static_claim_is_bound_to_its_volume(namespace: str) -> None:
    manifest = for_namespace(FOLDER / "fsx-static.yaml", namespace)
    done("apply", "-f", "-", manifest=manifest)
    try:
        done("wait", "-n", namespace, "--for=jsonpath={.status.phase}=Bound", "--timeout=30s", "pvc/fsx-claim")
    finally:
        done("delete", "--timeout=30s", "-f", "-", manifest=manifest)
