"""Is there a Training Operator that knows PyTorchJob, and is it new enough? Pure.

Its version is read from its deployment's image where that may be listed, else at least bounded by what its CRD knows: `suspend`
came with 1.7.0, `managedBy` with 1.9.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from steps.preflight.finding import Finding, error, ok, warning
from steps.preflight.question import Answer, Question, unread

GROUP = Question("/apis/kubeflow.org/v1", resource="/apis/kubeflow.org/v1")
CRD = Question(
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/pytorchjobs.kubeflow.org",
    resource="customresourcedefinitions",
    group="apiextensions.k8s.io",
)
DEPLOYMENTS = Question(
    "/apis/apps/v1/deployments",
    "list",
    "deployments",
    "apps",
    query=(("labelSelector", "control-plane=kubeflow-training-operator"),),
)
FLOOR = (1, 7, 0)
COMMIT_TAGS = {"v1-855e096": (1, 7, 0), "v1-5170a36": (1, 8, 1)}
"""The project tags its images by commit; the first is what HyperPod's chart installs."""
INSTALL = (
    "install the Training Operator 1.7.0 or newer (v1): HyperPod's Helm chart brings it (training-operators.enabled)"
)
NO_WEBHOOK = "below 1.8 nothing refuses a wrong job, so it is checked here"


def judge(group: Answer, crd: Answer, deployments: Answer) -> list[Finding]:
    """All about the operator."""
    if group.is_missing or (group.is_ok and not _is_known(group)):
        return [error("operator", "the cluster does not know PyTorchJob (kubeflow.org/v1)", INSTALL)]
    if not group.is_ok:
        return [unread("operator", GROUP, group, "whether PyTorchJob is known")]
    if not crd.is_ok:
        least: tuple[int, ...] = ()
        found = [unread("operator", CRD, crd, "the operator's version")] if not _version(deployments) else []
    else:
        least, found = _least(crd.body), _served(crd.body)
    return found or [_judge_version(least, deployments)]


def _is_known(group: Answer) -> bool:
    return any(item.get("name") == "pytorchjobs" for item in group.body.get("resources") or ())


def _v1(crd: Mapping[str, Any]) -> Mapping[str, Any]:
    versions = (crd.get("spec") or {}).get("versions") or ()
    return next((item for item in versions if item.get("name") == "v1"), {})


def _served(crd: Mapping[str, Any]) -> list[Finding]:
    if _v1(crd).get("served"):
        return []
    return [error("operator", "the CRD of PyTorchJob does not serve v1", INSTALL)]


def _least(crd: Mapping[str, Any]) -> tuple[int, ...]:
    schema = _v1(crd).get("schema") or {}
    policy = _at(schema, "openAPIV3Schema", "properties", "spec", "properties", "runPolicy", "properties")
    if "managedBy" in policy:
        return (1, 9, 0)
    return FLOOR if "suspend" in policy else (0,)


def _at(thing: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        thing = thing.get(key) or {}
    return thing


def _judge_version(least: tuple[int, ...], deployments: Answer) -> Finding:
    version = _version(deployments) or least
    if not version or version < FLOOR:
        known = (
            _words(version) if version and version > (0,) else "older than 1.7.0 (its CRD knows no runPolicy.suspend)"
        )
        return error("operator", f"the Training Operator is {known}; 1.7.0 is the least", INSTALL)
    named = f"Training Operator {_words(version)}{'' if _version(deployments) else ' or newer, by its CRD'}"
    away = [item for item in deployments.items if not (item.get("status") or {}).get("availableReplicas")]
    if away:
        where = f"deployment {away[0]['metadata']['namespace']}/{away[0]['metadata']['name']}"
        return error("operator", f"{named} does not run: {where} has no available replica", f"kubectl describe {where}")
    if deployments.is_ok and not deployments.items:
        what = f"{named}, but no deployment of it is found: it may run elsewhere, or only its CRD was left"
        return warning("operator", what, "kubectl get deployments -A | grep training-operator")
    ignored = [item for item in deployments.items if not _is_enabled(item)]
    if ignored:
        what = f"{named} is started without --enable-scheme=pytorchjob"
        return error("operator", what, "add it to the arguments of the operator's deployment")
    return ok("operator", f"{named}{'' if version >= (1, 8, 0) else f'; {NO_WEBHOOK}'}")


def _containers(deployment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(_at(deployment, "spec", "template", "spec").get("containers") or ())


def _version(deployments: Answer) -> tuple[int, ...]:
    """The version in the running image's tag; empty if unknown."""
    for deployment in deployments.items:
        for container in _containers(deployment):
            tag = str(container.get("image", "")).partition("@")[0].rpartition(":")[2]
            plain = re.match(r"v?(\d+)\.(\d+)\.(\d+)", tag)
            if tag in COMMIT_TAGS or plain:
                return COMMIT_TAGS.get(tag) or tuple(int(part) for part in plain.groups() if plain)  # type: ignore[union-attr]
    return ()


def _is_enabled(deployment: Mapping[str, Any]) -> bool:
    words = [
        str(word) for item in _containers(deployment) for key in ("command", "args") for word in item.get(key) or ()
    ]
    schemes = [word.partition("=")[2].lower() for word in words if "enable-scheme" in word]
    return not schemes or "pytorchjob" in schemes


def _words(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
