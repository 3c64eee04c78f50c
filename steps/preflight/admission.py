"""Would the namespace's LimitRanges and its PodSecurity level refuse the workers' pods? Judged by reading. Pure.

For accounts that may not create pods, the shipped one among them: they cannot ask the API server by a dry run. Sources: the
LimitRanger admission of Kubernetes, and its Pod Security Standards (v1.32).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from steps.preflight.finding import Finding, error, ok
from steps.preflight.quantity import Amounts, amounts, asked_by, show
from steps.preflight.question import Answer, Question, unread

ENFORCE = "pod-security.kubernetes.io/enforce"
ANY_VOLUME = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
"""Kinds of volumes that `restricted` lets through; `baseline` forbids hostPath only."""
LIMITS_FIX = "ask for what the LimitRange allows (cluster.cpu, memory_gib, instance_type), or have it changed"


def questions(namespace: str) -> dict[str, Question]:
    """The namespace with its labels, and its LimitRanges."""
    return {
        "namespace": Question(f"/api/v1/namespaces/{namespace}", "get", "namespaces"),
        "limitranges": Question(f"/api/v1/namespaces/{namespace}/limitranges", "list", "limitranges"),
    }


def judge(namespace: str, known: Mapping[str, Answer], template: Mapping[str, Any]) -> list[Finding]:
    """What would refuse a pod of this template; what could not be read is named."""
    asked = questions(namespace)
    lost = {"namespace": "whether the PodSecurity level", "limitranges": "whether a LimitRange"}
    found = [
        unread("pod", asked[key], known[key], f"{lost[key]} refuses the workers' pods")
        for key in asked
        if not known[key].is_ok and not known[key].is_missing
    ]
    found += _security(known["namespace"], template["spec"]) if known["namespace"].is_ok else []
    found += [item for limits in known["limitranges"].items for item in _limits(limits, template["spec"])]
    return found or [ok("pod", "neither LimitRange nor PodSecurity level refuses the workers' pods (read, not tried)")]


def _security(answer: Answer, pod: Mapping[str, Any]) -> list[Finding]:
    level = ((answer.body.get("metadata") or {}).get("labels") or {}).get(ENFORCE, "privileged")
    wrong = list(_violations(level, pod))
    if not wrong:
        return []
    fix = (
        "correct what it names (cluster.run_as_user, cluster.volumes), or have another level enforced for the namespace"
    )
    return [error("pod", f"the namespace's PodSecurity level {level} refuses a worker's pod: {'; '.join(wrong)}", fix)]


def _violations(level: str, pod: Mapping[str, Any]) -> Iterator[str]:
    """What the level forbids, as far as our pods can break it."""
    if level not in ("baseline", "restricted"):
        return
    for item in pod.get("volumes") or ():
        kind = next(key for key in item if key != "name")
        if kind == "hostPath" or (level == "restricted" and kind not in ANY_VOLUME):
            yield f"volume {item['name']} is a {kind}"
    if level == "restricted":
        yield from _unrestricted(pod)


def _unrestricted(pod: Mapping[str, Any]) -> Iterator[str]:
    outer = pod.get("securityContext") or {}
    for container in pod["containers"]:
        own = container.get("securityContext") or {}
        seen, name = {**outer, **own}, container["name"]
        if not seen.get("runAsNonRoot") or seen.get("runAsUser") == 0:
            yield f"container {name} may run as root (cluster.run_as_user is 0)"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"container {name} may gain privileges"
        if "ALL" not in ((own.get("capabilities") or {}).get("drop") or ()):
            yield f"container {name} keeps capabilities"
        if (seen.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"container {name} has no seccompProfile"


def _limits(item: Mapping[str, Any], pod: Mapping[str, Any]) -> Iterator[Finding]:
    """Of one LimitRange: its limits for containers, each with its defaults, and for the pod as a whole."""
    who = f"LimitRange {item['metadata']['name']} refuses a worker's"
    for limit in (item.get("spec") or {}).get("limits") or ():
        kind = limit.get("type")
        asked = [{"containers": [one]} for one in pod["containers"]] if kind == "Container" else [pod]
        if kind not in ("Container", "Pod"):
            continue
        for one in asked:
            requests, limits = _with_defaults(one, limit)
            for words in _breaks(requests, limits, limit):
                yield error(
                    "pod",
                    f"{who} {kind.lower()}: {words}",
                    LIMITS_FIX,
                )


def _with_defaults(one: Mapping[str, Any], limit: Mapping[str, Any]) -> tuple[Amounts, Amounts]:
    """(requests, limits), filled up as admission does; only limits for containers have defaults."""
    limits = {**amounts(limit.get("default")), **asked_by(one, "limits")}
    return {**limits, **amounts(limit.get("defaultRequest")), **asked_by(one)}, limits


def _breaks(requests: Amounts, limits: Amounts, limit: Mapping[str, Any]) -> Iterator[str]:
    for name, least in amounts(limit.get("min")).items():
        if requests.get(name, Decimal(0)) < least:
            yield f"{show(name, requests.get(name, Decimal(0)))} is asked for, and the minimum is {show(name, least)}"
    for name, most in amounts(limit.get("max")).items():
        if name not in limits:
            yield f"it has no limit of {name}, and the maximum is {show(name, most)}"
        elif max(limits[name], requests.get(name, Decimal(0))) > most:
            highest = max(limits[name], requests.get(name, Decimal(0)))
            yield f"{show(name, highest)} is asked for, and the maximum is {show(name, most)}"
    for name, value in requests.items():
        if name in limits and value > limits[name]:
            yield f"{show(name, value)} is asked for, more than the default limit {show(name, limits[name])}"
    for name, ratio in amounts(limit.get("maxLimitRequestRatio")).items():
        if name in limits and requests.get(name) and limits[name] / requests[name] > ratio:
            yield f"the limit of {name} is more than {ratio} times the request"
