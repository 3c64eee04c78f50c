"""A namespace of its own on the real cluster, with config/cluster/rbac.yaml in it, and the preflight as that service account."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes import config
from kubernetes.client import ApiClient

from steps.preflight.finding import Finding
from steps.preflight.run import findings
from steps.preflight.survey import Target
from steps.settings.config import Settings, parse_settings

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLE = "hyperpod-ns-research"
NAME = "hyperpod-lora"
Objects = list[dict[str, Any]]


def kubectl(*arguments: str, given: str | None = None) -> str:
    """Run it; its words are in the error when it fails."""
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def shipped_rights(space: str) -> Objects:
    """config/cluster/rbac.yaml for this namespace; what is not namespaced gets names of its own."""
    text = (PROJECT / "config/cluster/rbac.yaml").read_text(encoding="utf-8").replace(EXAMPLE, space)
    objects = [item for item in yaml.safe_load_all(text) if item]
    for item in objects:
        if item["kind"].startswith("Cluster"):
            item["metadata"]["name"] = f"{item['metadata']['name']}-{space}"[:253]
        if item["kind"] == "ClusterRoleBinding":
            item["roleRef"]["name"] = f"{item['roleRef']['name']}-{space}"
    return objects


def verbs_of(objects: Objects) -> list[tuple[str, str, str]]:
    """(kind of role, verb, resource), each that is granted."""
    return [
        (item["kind"], verb, resource)
        for item in objects
        for rule in item.get("rules") or ()
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def without(objects: Objects, kind: str, verb: str, resource: str) -> dict[str, Any]:
    """That role, less one verb on one resource."""
    role = copy.deepcopy(next(item for item in objects if item["kind"] == kind))
    rules = []
    for rule in role["rules"]:
        if resource in rule["resources"]:
            others = [item for item in rule["resources"] if item != resource]
            rules += [{**rule, "resources": others}] if others else []
            rest = [item for item in rule["verbs"] if item != verb]
            rules += [{**rule, "resources": [resource], "verbs": rest}] if rest else []
        else:
            rules.append(rule)
    return {**role, "rules": rules}


def apply(*objects: dict[str, Any]) -> None:
    kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def claim(space: str) -> Objects:
    """A bound ReadWriteMany claim, as FSx's static one would be."""
    labels = {"hyperpod-lora/test": space}
    modes, size = ["ReadWriteMany"], "1200Gi"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"fsx-{space}", "labels": labels},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": modes,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": space, "name": "fsx-claim"},
            "hostPath": {"path": os.environ.get("LORA_CLUSTER_FSX", "/tmp")},
        },
    }
    spec = {
        "accessModes": modes,
        "storageClassName": "",
        "volumeName": f"fsx-{space}",
        "resources": {"requests": {"storage": size}},
    }
    meta = {"name": "fsx-claim", "namespace": space}
    return [volume, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}]


@contextmanager
def made_namespace(*, with_claim: bool = True) -> Iterator[str]:
    """Made, and removed with all that is in it or was made for it."""
    space = f"preflight-{uuid.uuid4().hex[:8]}"
    rights = shipped_rights(space)
    beyond = [item for item in [*rights, *claim(space)] if "namespace" not in item["metadata"]]
    try:
        apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}})
        apply(*rights, *(claim(space) if with_claim else []))
        if with_claim:
            path = "jsonpath={.status.phase}=Bound"
            kubectl("wait", f"--for={path}", "persistentvolumeclaim/fsx-claim", "-n", space, "--timeout=30s")
        yield space
    finally:
        kubectl("delete", "namespace", space, "--ignore-not-found", "--wait=false")
        for item in beyond:
            kubectl("delete", item["kind"], item["metadata"]["name"], "--ignore-not-found", "--wait=false")


def client_of(space: str, account: str = NAME) -> ApiClient:
    """A client that is this service account."""
    token = kubectl("create", "token", account, "-n", space, "--duration=1h").strip()
    api = config.new_client_from_config()
    api.configuration.api_key = {"BearerToken": f"Bearer {token}"}
    api.configuration.api_key_prefix = {}
    api.configuration.cert_file = api.configuration.key_file = None
    api.configuration.refresh_api_key_hook = None
    return ApiClient(api.configuration)


def settings(space: str, **cluster: Any) -> Settings:
    """Fits the test cluster's two small nodes; the steps run here, so that no datastore is needed."""
    given = {
        "namespace": space,
        "image": "localhost/hyperpod-lora:mounted",
        "instance_type": "trn1.32xlarge",
        "nodes": 2,
        "cpu": 0.2,
        "memory_gib": 0.5,
        "steps": {"enabled": False, "service_account": NAME},
        "mount_path": "/tmp",
    }
    raw = {
        "storage": {"root": "/tmp", "cache": "/tmp"},
        "launcher": {"kind": "pytorchjob"},
        "cluster": {**given, **cluster},
    }
    return parse_settings(raw)


def look(api: ApiClient, space: str, **cluster: Any) -> list[Finding]:
    """All findings, as that account; with more time than in earnest, as other tests may keep the machine busy."""
    return findings(Target(settings(space, **cluster)), connect=lambda context: api, limit_s=60.0)


def sentences(found: Sequence[Finding]) -> set[str]:
    """Of what is not in order."""
    return {f"{item.severity} {item.check}: {item.message}" for item in found if item.severity != "ok"}
