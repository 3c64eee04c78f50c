"""The files of config/cluster as values, and what each of us may do by them, written out once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "config" / "cluster"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMESPACE = "hyperpod-ns-research"
CLAIM = "fsx-claim"
ACCOUNT = {"kind": "ServiceAccount", "name": "hyperpod-lora", "namespace": NAMESPACE}
PEOPLE = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": f"hyperpod-lora-users-{NAMESPACE}"}

OF_THE_ROLE = {
    "pytorchjobs.kubeflow.org": {"create", "get", "list", "watch", "delete"},
    "pods": {"get", "list", "watch"},
    "pods/log": {"get"},
    "persistentvolumeclaims": {"get"},
    "resourcequotas": {"list"},
    "limitranges": {"list"},
    "namespaces": {"get"},
    "events": {"list"},
    "localqueues.kueue.x-k8s.io": {"get"},
    "workloads.kueue.x-k8s.io": {"list"},
}
OF_THE_CLUSTER_ROLE = {
    "nodes": {"get", "list"},
    "customresourcedefinitions.apiextensions.k8s.io": {"get"},
    "clusterqueues.kueue.x-k8s.io": {"get"},
    "resourceflavors.kueue.x-k8s.io": {"get"},
    "workloadpriorityclasses.kueue.x-k8s.io": {"get"},
}
OF_ARGO_PODS = {"workflowtaskresults.argoproj.io": {"create", "patch"}}
OF_METAFLOW_RUN = {"jobs.batch": {"create", "get", "patch"}}
OF_METAFLOW_ARGO = {
    "workflowtemplates.argoproj.io": {"create", "get", "list", "update", "delete"},
    "workflows.argoproj.io": {"create", "get", "patch"},
    "cronworkflows.argoproj.io": {"create", "get", "list", "update", "patch", "delete"},
    "sensors.argoproj.io": {"delete"},
}


def objects(path: Path) -> list[dict[str, Any]]:
    """All objects of one file."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def of_kind(*kinds: str) -> dict[tuple[str, str], dict[str, Any]]:
    """All objects of these kinds, of all files, by kind and name; the claim is in two files, of which one is applied."""
    found = [(item["kind"], item["metadata"]["name"], item) for path in FILES for item in objects(path)]
    return {(kind, name): item for kind, name, item in found if kind in kinds}


def allowed(role: dict[str, Any]) -> dict[str, set[str]]:
    """`{"pods": {"get"}}`: a role's rules, resources named as kubectl names them."""
    found: dict[str, set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault(f"{resource}.{group}" if group else resource, set()).update(rule["verbs"])
    return found
