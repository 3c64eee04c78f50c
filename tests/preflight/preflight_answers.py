"""A cluster in perfect order, as answers of its API server; each test spoils one of them, and looks for the words that help."""

from __future__ import annotations

import copy
from typing import Any

from steps.preflight import queue, survey
from steps.preflight.cloud import Datastore
from steps.preflight.finding import Finding
from steps.preflight.question import Answer
from steps.preflight.survey import Target
from steps.settings.config import Settings, parse_settings

SPACE = "hyperpod-ns-research"
ACCOUNT = f"system:serviceaccount:{SPACE}:hyperpod-lora"
IMAGE = "444455556666.dkr.ecr.us-west-2.amazonaws.com/lora:0.1.0"
QUEUED = {"queue": "research", "priority": "training-priority"}
FORBIDDEN = Answer(403, {"message": "forbidden: User x cannot create resource, list or get it"})
MISSING = Answer(404, {"message": "not found"})
SILENT = Answer(0, reason="ReadTimeoutError at https://cluster")

Case = tuple[dict[str, Any], dict[str, Answer], str, str, str]
"""Cluster settings, spoiled answers → severity, words of the message, words of the fix."""


def target(*, is_inside: bool = True, launcher: dict[str, Any] | None = None, **cluster: Any) -> Target:
    return Target(settings(launcher=launcher, **cluster), datastore=Datastore("s3", "s3://b/p"), is_inside=is_inside)


def settings(*, launcher: dict[str, Any] | None = None, **cluster: Any) -> Settings:
    given: dict[str, Any] = {"namespace": SPACE, "image": IMAGE, "instance_type": "trn1.32xlarge", "nodes": 2}
    steps = {"service_account": "hyperpod-lora", **cluster.pop("steps", {})}
    return parse_settings(
        {
            "storage": {"root": "/fsx/runs", "cache": "/fsx/cache"},
            "launcher": {"kind": "pytorchjob", **(launcher or {})},
            "cluster": {**given, "steps": steps, **cluster},
        }
    )


def node(name: str, **changed: Any) -> dict[str, Any]:
    labels = {
        "node.kubernetes.io/instance-type": "ml.trn1.32xlarge",
        "sagemaker.amazonaws.com/node-health-status": "Schedulable",
        **changed.get("labels", {}),
    }
    room = {"cpu": "127610m", "memory": "518000000Ki", "aws.amazon.com/neuron": "16", "vpc.amazonaws.com/efa": "8"}
    ready = {"type": "Ready", "status": "True", **changed.get("ready", {})}
    return {
        "metadata": {"name": name, "labels": {key: value for key, value in labels.items() if value is not None}},
        "spec": changed.get("spec", {}),
        "status": {"allocatable": {**room, **changed.get("room", {})}, "conditions": [ready], "images": []},
    }


def pod(name: str, on: str, **requests: str) -> dict[str, Any]:
    asked = {key.replace("neuron", "aws.amazon.com/neuron"): value for key, value in requests.items()}
    container = {"resources": {"requests": asked}}
    return {"metadata": {"namespace": "other", "name": name}, "spec": {"nodeName": on, "containers": [container]}}


def cluster_queue(**changed: Any) -> dict[str, Any]:
    resources = [
        {"name": "cpu", "nominalQuota": "250"},
        {"name": "memory", "nominalQuota": "960Gi"},
        {"name": "aws.amazon.com/neuron", "nominalQuota": "32"},
        {"name": "vpc.amazonaws.com/efa", "nominalQuota": "16"},
    ]
    group = {
        "coveredResources": [item["name"] for item in resources],
        "flavors": [{"name": "trn1", "resources": resources}],
    }
    spec = {"namespaceSelector": {}, "resourceGroups": [group], **changed.get("spec", {})}
    return {"spec": spec, "status": {"conditions": [{"type": "Active", "status": "True"}], **changed.get("status", {})}}


def crd(*policy: str, served: bool = True) -> dict[str, Any]:
    runs = {"properties": {"runPolicy": {"properties": {name: {} for name in policy or ("suspend", "backoffLimit")}}}}
    schema = {"openAPIV3Schema": {"properties": {"spec": runs}}}
    return {"spec": {"versions": [{"name": "v1", "served": served, "schema": schema}]}}


def operator(tag: str = "v1-855e096", *, available: int = 1, arguments: tuple[str, ...] = ()) -> dict[str, Any]:
    container = {"image": f"kubeflow/training-operator:{tag}", "args": list(arguments)}
    return {
        "metadata": {"namespace": "kubeflow", "name": "training-operator"},
        "spec": {"template": {"spec": {"containers": [container]}}},
        "status": {"availableReplicas": available} if available else {},
    }


def items(*found: dict[str, Any], **meta: str) -> Answer:
    return Answer(200, {"items": list(found), "metadata": meta})


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> Answer:
    return items({"metadata": {"name": "team"}, "spec": spec, "status": {"hard": hard, "used": used or {}}})


def flavor(**spec: Any) -> Answer:
    return Answer(200, {"spec": spec})


CLAIM = {"status": {"phase": "Bound", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "1200Gi"}}}
GOOD: dict[str, Answer] = {
    "me": Answer(201, {"status": {"userInfo": {"username": ACCOUNT}}}),
    "version": Answer(200, {"gitVersion": "v1.32.9"}),
    "group": Answer(200, {"resources": [{"name": "pytorchjobs"}]}),
    "crd": Answer(200, crd()),
    "deployments": items(operator()),
    "nodes": items(node("node-1"), node("node-2")),
    "pods": items(),
    "quotas": items(),
    "limitranges": items(),
    "namespace": Answer(200, {"metadata": {"name": SPACE}}),
    "job": Answer(201, {"spec": {"runPolicy": {"suspend": True}}}),
    "pod": Answer(201),
    "kueue": Answer(200, {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta1"}}),
    "localqueue": Answer(200, {"spec": {"clusterQueue": "team-cq"}, "status": {"conditions": []}}),
    "priority": Answer(200, {"value": 100}),
    "clusterqueue": Answer(200, cluster_queue()),
    "flavor trn1": flavor(nodeLabels={"node.kubernetes.io/instance-type": "ml.trn1.32xlarge"}),
}


def answers(aim: Target, spoiled: dict[str, Answer] | None = None) -> dict[str, Answer]:
    """Of the perfect cluster, to all that is asked for this target, but for the spoiled ones."""
    spoiled = spoiled or {}
    asked = {**survey.questions(aim, survey.sample(aim)), "version": survey.VERSION}
    known = {key: spoiled.get(key, _good(key)) for key in asked}
    while more := queue.questions(aim.settings.cluster, known):
        known |= {key: spoiled.get(key, _good(key)) for key in more}
    assert spoiled.keys() <= known.keys(), f"never asked: {spoiled.keys() - known.keys()}"
    return known


def _good(key: str) -> Answer:
    if key.startswith(("own ", "their ")):
        return Answer(201, {"status": {"allowed": True}})
    if key.startswith("claim "):
        return Answer(200, copy.deepcopy(CLAIM))
    if key.startswith("named "):
        return Answer(200, {"data": {"HF_TOKEN": "…"}})
    return GOOD[key]


DENIED = Answer(201, {"status": {"allowed": False}})


def judge(aim: Target, spoiled: dict[str, Answer] | None = None) -> list[Finding]:
    return survey.judge(aim, survey.sample(aim), answers(aim, spoiled))


def not_ok(found: list[Finding]) -> list[Finding]:
    return [item for item in found if item.severity != "ok"]


def expect(case: Case, check: str) -> None:
    """Exactly one finding to act on under this check, with these words."""
    cluster, spoiled, severity, words, fix = case
    found = [item for item in not_ok(judge(target(**cluster), spoiled)) if item.check == check]
    assert [item.severity for item in found] == [severity], found
    assert words in found[0].message
    assert fix in found[0].fix


HEALTH, TYPE = "sagemaker.amazonaws.com/node-health-status", "node.kubernetes.io/instance-type"
TWO = {"nodes": items(node("node-1"), node("node-2"))}
ADMIN = {"me": Answer(201, {"status": {"userInfo": {"username": "admin"}}})}
