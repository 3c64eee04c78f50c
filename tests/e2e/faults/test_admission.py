"""Pods that are refused, evicted, kept from starting, or given company: LimitRange, PodSecurity, secrets, sidecars."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.flow import launchers
from steps.preflight.manifest import pod_question
from steps.preflight.survey import Target, sample
from tests.e2e.faults.conftest import Expect, MakeTrial, make_namespace
from tests.e2e.faults.fault_harness import NAMESPACE, apply, eventually, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

CONFIG = Path(__file__).parents[3] / "config" / "hyperpod.yaml"
QUICK_S = 120.0
"""Far less than the harness's `deadlines.startup_s`, on a busy machine too."""


def limit_range(namespace: str, **limit: Mapping[str, str]) -> None:
    """For every container of the namespace."""
    metadata = {"name": "tight", "namespace": namespace}
    apply(
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": metadata,
            "spec": {"limits": [{"type": "Container", **limit}]},
        }
    )


def restrict(namespace: str) -> None:
    """Enforce PodSecurity `restricted`."""
    kubectl("label", "--overwrite", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")


def test_a_limit_range_that_refuses_the_pods_is_told_at_once(trial: MakeTrial, expect: Expect, shared: Path) -> None:
    small = f"{NAMESPACE}-small"
    make_namespace(small, shared.parent)
    limit_range(small, max={"memory": "100Mi"})
    training = trial("small", settings={"cluster": {"namespace": small}})
    training.namespace = small
    begun_s = time.monotonic()
    supervisor = training.start()
    expect(
        "a LimitRange refuses the pods",
        training,
        classes=["config"],
        error="JobPermanentError",
        reads="maximum memory usage per Container is 100Mi",
    )
    assert time.monotonic() - begun_s < QUICK_S
    assert not [line for line in supervisor.said() if "taken no notice" in line]


def test_pod_security_that_refuses_the_pods_is_told_at_once(trial: MakeTrial, expect: Expect, shared: Path) -> None:
    """The harness mounts folders of the nodes, which `restricted` forbids."""
    strict = f"{NAMESPACE}-strict"
    make_namespace(strict, shared.parent)
    restrict(strict)
    training = trial("strict", settings={"cluster": {"namespace": strict}})
    training.namespace = strict
    begun_s = time.monotonic()
    training.start()
    expect(
        "PodSecurity `restricted` refuses the pods (a volume of the node's)",
        training,
        classes=["config"],
        error="JobPermanentError",
        reads="violates PodSecurity .restricted:latest.: (hostPath|restricted volume types)",
    )
    assert time.monotonic() - begun_s < QUICK_S


def test_the_shipped_worker_is_accepted_by_pod_security_restricted(shared: Path) -> None:
    strict = f"{NAMESPACE}-strict"
    make_namespace(strict, shared.parent)
    restrict(strict)
    raw = yaml.safe_load(CONFIG.read_text())
    raw["cluster"]["namespace"] = strict
    path = Path(shared) / "shipped.yaml"
    path.write_text(yaml.safe_dump(raw))
    asked = pod_question(sample(Target(launchers.read_settings(path))))
    accepted = kubectl("create", "--dry-run=server", "-o", "name", "-f", "-", given=json.dumps(asked.body))
    assert accepted.startswith("pod/")


def test_a_secret_that_comes_late_is_waited_for(trial: MakeTrial, expect: Expect) -> None:
    training = trial("late-secret", settings={"cluster": {"token_secret": "late-token"}}, steps=6)
    kubectl("-n", NAMESPACE, "delete", "secret", "late-token", "--ignore-not-found")
    supervisor = training.start()
    told = supervisor.when_said("does not start (CreateContainerConfigError")
    assert "it is waited for, up to 400 s from the start (deadlines.startup_s)" in told
    metadata = {"name": "late-token", "namespace": NAMESPACE}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"HF_TOKEN": "none"}})
    expect("the token's secret comes late", training, classes=[], reads="does not start .CreateContainerConfigError")


def test_a_worker_that_fills_its_nodes_disk_does_not_blame_the_node(
    trial: MakeTrial, expect: Expect, shared: Path
) -> None:
    """Its pod's log lies on the node's disk, and counts."""
    narrow = f"{NAMESPACE}-narrow"
    make_namespace(narrow, shared.parent)
    limit_range(narrow, default={"ephemeral-storage": "20Mi"})
    acts: dict[str, Any] = {"1": {"rank": 1, "step": 5, "act": "talk 40"}}
    training = trial("fills", settings={"cluster": {"namespace": narrow}}, acts=acts)
    training.namespace = narrow
    training.start()
    expect(
        "a worker is evicted for what it wrote to its node",
        training,
        classes=["storage"],
        reads="wrote more to its node",
    )
    assert "exceed" in training.history()[0]["message"]


def test_a_sidecar_that_never_ends_holds_no_node(trial: MakeTrial, expect: Expect) -> None:
    """As a service mesh's webhook injects one: the operator never calls such a job succeeded."""
    training = trial("sidecar", steps=8)
    training.more = {"sidecar": ["python", "-c", "import time; time.sleep(1e6)"]}
    supervisor = training.start()
    eventually("the training is done", lambda: any(event.kind == "finished" for event in training.events(1)))
    begun_s = time.monotonic()
    supervisor.wait()
    assert time.monotonic() - begun_s < QUICK_S  # deadlines.exit_s is 200 here
    expect("a sidecar that never ends", training, classes=[], reads="is over")
