"""Each permission missing, one verb at a time: with the shipped role's rights otherwise, and what the launcher then says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.faults.conftest import Expect, MakeTrial
from tests.e2e.faults.fault_harness import NAMESPACE, apply, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

RIGHTS = {
    "pytorchjobs": ("kubeflow.org", ["create", "get", "list", "watch", "delete"]),
    "pods": ("", ["get", "list", "watch"]),
    "pods/log": ("", ["get"]),
    "events": ("", ["list"]),
}
"""Of the shipped role (config/cluster/rbac.yaml), what the launcher itself uses."""
OPTIONAL = ["pytorchjobs watch", "pods watch", "pods get", "pods/log get", "events list"]
"""Without these it goes on: by listing instead of watching, with fewer words in the evidence."""
REQUIRED = ["pytorchjobs create", "pytorchjobs list", "pytorchjobs delete", "pods list"]


def account(name: str, without: str, folder: Path) -> Path:
    """A service account that may do all but one thing; the kubeconfig of a person who uses it."""
    rules = [
        {"apiGroups": [group], "resources": [kind], "verbs": [verb for verb in verbs if f"{kind} {verb}" != without]}
        for kind, (group, verbs) in RIGHTS.items()
    ]
    metadata = {"name": name, "namespace": NAMESPACE}
    role, group = {"name": name}, "rbac.authorization.k8s.io"
    binding: dict[str, Any] = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": metadata}
    apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [rule for rule in rules if rule["verbs"]],
        },
        {
            **binding,
            "roleRef": {"apiGroup": group, "kind": "Role", **role},
            "subjects": [{"kind": "ServiceAccount", **role, "namespace": NAMESPACE}],
        },
    )
    token = kubectl("-n", NAMESPACE, "create", "token", name)
    given = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    given["users"] = [{"name": user["name"], "user": {"token": token}} for user in given["users"]]
    path = folder / "kubeconfig"
    path.write_text(json.dumps(given))
    path.chmod(0o600)
    return path


@pytest.fixture
def kubeconfig(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> Iterator[tuple[str, Path]]:
    """(missing right, kubeconfig of the account that lacks it)."""
    name = "lacks-" + request.param.replace(" ", "-").replace("/", "-")
    yield request.param, account(name, request.param, tmp_path)
    kubectl("-n", NAMESPACE, "delete", "serviceaccount,role,rolebinding", name, "--ignore-not-found")


@pytest.mark.parametrize("kubeconfig", OPTIONAL, indirect=True)
def test_without_an_optional_right_a_worker_that_dies_is_still_recovered(
    trial: MakeTrial, expect: Expect, kubeconfig: tuple[str, Path]
) -> None:
    missing, path = kubeconfig
    training = trial(
        "no-" + missing.replace(" ", "-").replace("/", "-"), nodes=1, acts={"1": {"rank": 0, "step": 5, "act": "crash"}}
    )
    training.start(kubeconfig=str(path))
    expect(
        f"no permission: {missing} (optional)",
        training,
        classes=["unknown"],
        reads="rank 0 .*killed by SIGKILL",
        lost_at_most=40,
    )


@pytest.mark.parametrize("kubeconfig", REQUIRED, indirect=True)
def test_without_a_required_right_the_words_name_it(
    trial: MakeTrial, expect: Expect, kubeconfig: tuple[str, Path]
) -> None:
    missing, path = kubeconfig
    kind, verb = missing.split()
    training = trial("no-" + missing.replace(" ", "-"), nodes=1, steps=4)
    training.start(kubeconfig=str(path))
    ended = training.supervisors[-1].wait()
    training.clean()
    group = RIGHTS[kind][0]
    reads = f'cannot {verb} resource "{kind}" in API group "{group}"'
    token = json.loads(path.read_text())["users"][0]["user"]["token"]
    expect(f"no permission: {missing}", training, classes=[], error="ClusterForbidden", reads=reads)
    assert token not in json.dumps(ended) + training.supervisors[-1].output.read_text()
