"""Which nodes could take one worker, and which of them are free now: the scheduler's rules, as far as our pods use them. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steps.job.agent.neuron_versions import parse, refuses_older_runtimes
from steps.preflight.finding import Finding, error, ok, warning
from steps.preflight.quantity import Amounts, amounts, asked_by, lacking, show
from steps.preflight.question import Answer, Question, condition, unread
from steps.pytorchjob.pod_template import HEALTH, INSTANCE_TYPE

NODES = Question("/api/v1/nodes", "list", "nodes", query=(("limit", "2000"),))
RUNNING = (("fieldSelector", "status.phase!=Succeeded,status.phase!=Failed"), ("limit", "3000"))
PODS = Question("/api/v1/pods", "list", "pods", query=RUNNING)
LONGEST_LIST = 4
DRIVER_LABEL = re.compile(r"neuron.*driver")
"""Of a label whose value is the driver's version: nobody sets one by default, the install guide shows how."""
OVERRIDE = "`cluster.preflight: false` starts all the same, where nodes are added on demand"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a node cannot take the pod."""

    what: str
    fix: str
    is_other_kind: bool = False
    """It was never meant to: another instance type, another selector."""


def judge(nodes: Answer, pods: Answer, pod: Mapping[str, Any], *, wanted: int, least: int) -> list[Finding]:
    """Are there enough healthy nodes for `wanted` workers like `pod`, or at least for `least`?"""
    if not nodes.is_ok:
        return [unread("nodes", NODES, nodes, "whether healthy nodes are there")]
    obstacles = {node["metadata"]["name"]: obstacle(node, pod) for node in nodes.items}
    able = [node for node in nodes.items if not obstacles[node["metadata"]["name"]]]
    if len(able) < wanted:
        return [_too_few(obstacles, nodes.items, pod, able=len(able), wanted=wanted, least=least)]
    return [_free(able, pods, pod, wanted)]


def judge_steps(nodes: Answer, spec: Mapping[str, Any]) -> list[Finding]:
    """Is there a node for the pods of prepare, merge and evaluate?"""
    if not nodes.is_ok:
        return []  # `judge` has said so
    obstacles = [obstacle(node, spec) for node in nodes.items]
    if not all(obstacles):
        return [ok("steps", f"a node can take the flow's own steps ({_words(asked_by(spec))})")]
    reasons = Counter(item.what for item in obstacles if item)
    listed = "; ".join(f"{number} × {what}" for what, number in reasons.most_common(LONGEST_LIST)) or "there is no node"
    fix = "lower cluster.steps.cpu or memory_gib, or correct cluster.steps.node_selector"
    return [warning("steps", f"no node can take the flow's own steps ({_words(asked_by(spec))}): {listed}", fix)]


def judge_drivers(nodes: Answer, pod: Mapping[str, Any]) -> list[Finding]:
    """Does a node's label tell of a driver that refuses the neuron image's runtime? Silent where no label tells."""
    told = {
        node["metadata"]["name"]: value
        for node in (nodes.items if nodes.is_ok else ())
        for key, value in _labels(node).items()
        if DRIVER_LABEL.search(key) and refuses_older_runtimes(parse(value)) and not _selector(node, pod)
    }
    if not told:
        return []
    listed = ", ".join(f"{name}: {value}" for name, value in list(told.items())[:LONGEST_LIST])
    what = (
        f"{len(told)} nodes have a Neuron driver of 2.29 or later ({listed}), which refuses runtimes before 2.33: the image "
        "of containers/neuron.Dockerfile (SDK 2.26) cannot start there"
    )
    return [warning("drivers", what, "hold the nodes' image at driver 2.28: docs/install-on-hyperpod.md, section 3")]


def _words(given: Amounts) -> str:
    return ", ".join(show(name, value) for name, value in given.items()) or "no request"


def obstacle(node: Mapping[str, Any], pod: Mapping[str, Any]) -> Obstacle | None:
    """The first reason why this node cannot take the pod even when it is empty."""
    return _selector(node, pod) or _health(node, pod) or _state(node) or _taint(node, pod) or _room(node, pod)


def _labels(node: Mapping[str, Any]) -> Mapping[str, str]:
    return node["metadata"].get("labels") or {}


def _selector(node: Mapping[str, Any], pod: Mapping[str, Any]) -> Obstacle | None:
    for key, value in (pod.get("nodeSelector") or {}).items():
        found = _labels(node).get(key)
        if found != value:
            setting = "cluster.instance_type" if key == INSTANCE_TYPE else "the node_selector"
            return Obstacle(f"{key} is {found or 'not set'}, not {value}", f"correct {setting}", is_other_kind=True)
    return None


def _health(node: Mapping[str, Any], pod: Mapping[str, Any]) -> Obstacle | None:
    affinity = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    terms = (affinity or {}).get("nodeSelectorTerms") or ()
    for term in (item for part in terms for item in part.get("matchExpressions") or ()):
        found = _labels(node).get(term["key"])
        if found not in term["values"]:
            what = f"{term['key']} is {found or 'not set'}, not {' or '.join(term['values'])}"
            return Obstacle(what, _health_fix(term["key"], found))
    return None


def _health_fix(key: str, found: str | None) -> str:
    if key == HEALTH and found is None:
        return "not a node that HyperPod manages: set cluster.require_healthy_nodes to false if that is meant"
    return "HyperPod repairs it by itself (deep checks take up to two hours); wait, or set cluster.min_nodes"


def _state(node: Mapping[str, Any]) -> Obstacle | None:
    name, ready = node["metadata"]["name"], condition(node, "Ready")
    if ready.get("status") != "True":
        why = f" ({ready.get('reason')}: {ready.get('message')})" if ready.get("reason") else ""
        return Obstacle(f"not Ready{why}", f"kubectl describe node {name}")
    if (node.get("spec") or {}).get("unschedulable"):
        return Obstacle("cordoned", f"kubectl uncordon {name}, when whoever cordoned it agrees")
    return None


def _taint(node: Mapping[str, Any], pod: Mapping[str, Any]) -> Obstacle | None:
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint.get("effect") == "PreferNoSchedule" or any(
            _is_tolerated(taint, item) for item in pod.get("tolerations") or ()
        ):
            continue
        words = f"{taint['key']}={taint.get('value', '')}:{taint['effect']}"
        return Obstacle(f"taint {words}", "wait until it is taken away, or tolerate it: cluster.tolerations")
    return None


def _is_tolerated(taint: Mapping[str, Any], toleration: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return (toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", ""))


def _room(node: Mapping[str, Any], pod: Mapping[str, Any]) -> Obstacle | None:
    short = lacking(asked_by(pod), _allocatable(node))
    if not short:
        return None
    device = next((item for item in short if "/" in item.split()[0]), "")
    fix = "look at the device plugin on that node" if device else "lower cluster.cpu or cluster.memory_gib"
    return Obstacle(f"has too little for one worker: {', '.join(short)}", fix)


def _allocatable(node: Mapping[str, Any]) -> Amounts:
    return amounts((node.get("status") or {}).get("allocatable"))


def _too_few(
    obstacles: Mapping[str, Obstacle | None],
    nodes: Sequence[Mapping[str, Any]],
    pod: Mapping[str, Any],
    *,
    able: int,
    wanted: int,
    least: int,
) -> Finding:
    near = {name: item for name, item in obstacles.items() if item and not item.is_other_kind}
    listed = [f"{name}: {item.what}" for name, item in list(near.items())[:LONGEST_LIST]]
    listed += [f"and {len(near) - LONGEST_LIST} more"] if len(near) > LONGEST_LIST else []
    others = [item for item in obstacles.values() if item and item.is_other_kind]
    if others:
        listed.append(f"{len(others)} of another kind ({_kinds(nodes, pod, others)})")
    what = f"{able} of {wanted} nodes can take a worker: {'; '.join(listed) or 'there is no other node'}"
    fixes = list(dict.fromkeys(item.fix for item in (*near.values(), *others)))[:2] or ["lower cluster.nodes"]
    if able >= least:
        return warning(
            "nodes", f"{what}. It starts with fewer when the rest does not come (min_nodes {least})", fixes[0]
        )
    return error("nodes", what, "; ".join([*fixes, OVERRIDE]))


def _kinds(nodes: Sequence[Mapping[str, Any]], pod: Mapping[str, Any], others: Sequence[Obstacle]) -> str:
    """What the other nodes are: their instance types, or the label that differs."""
    asked = (pod.get("nodeSelector") or {}).get(INSTANCE_TYPE)
    types = Counter(str(_labels(node).get(INSTANCE_TYPE)) for node in nodes)
    if asked and not types[asked]:
        return f"{', '.join(f'{number} × {kind}' for kind, number in types.most_common(3))}; {asked} was asked for"
    return others[0].what


def _free(able: Sequence[Mapping[str, Any]], pods: Answer, pod: Mapping[str, Any], wanted: int) -> Finding:
    healthy = f"{len(able)} healthy nodes can take a worker, {wanted} are needed"
    if not pods.is_ok or (pods.body.get("metadata") or {}).get("continue"):
        why = "there are too many pods" if pods.is_ok else "pods of other namespaces may not be listed"
        return ok("nodes", f"{healthy}; how many are free is not known ({why})")
    busy = {node["metadata"]["name"]: _holders(node, pods.items, pod) for node in able}
    holders = [f"{name}: {', '.join(held[:2])}" for name, held in busy.items() if held]
    free = len(able) - len(holders)
    if free >= wanted:
        return ok("nodes", f"{healthy}, {free} are free now")
    what = f"{healthy}, but only {free} are free now: {'; '.join(holders[:LONGEST_LIST])}"
    return warning("nodes", what, "nothing, if they end in time: the job waits for them, deadlines.startup_s long")


def _holders(node: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], pod: Mapping[str, Any]) -> list[str]:
    """The pods on this node, the largest first, if they leave no room for ours."""
    here = [item for item in pods if (item.get("spec") or {}).get("nodeName") == node["metadata"]["name"]]
    left, wanted = _allocatable(node), asked_by(pod)
    for item in here:
        for name, value in asked_by(item["spec"]).items():
            left[name] = left.get(name, value) - value
    short = [name for name, value in wanted.items() if value > left.get(name, 0)]
    if not short:
        return []
    here.sort(key=lambda item: asked_by(item["spec"]).get(short[0], 0), reverse=True)
    return [f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in here] or ["unknown pods"]
