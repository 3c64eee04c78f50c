"""Which nodes can take a worker, and what is said about those that cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from steps.preflight.nodes import judge_drivers
from steps.preflight.question import Answer
from steps.pytorchjob.pod_template import INSTANCE_TYPE
from tests.preflight import preflight_answers as good
from tests.preflight.preflight_answers import FORBIDDEN, HEALTH, SILENT, TWO, Case, expect, items, judge, node, not_ok


def second(**changed: Any) -> dict[str, Answer]:
    return {"nodes": items(node("node-1"), node("node-2", **changed))}


NODES: dict[str, Case] = {
    "too few": ({"nodes": 3}, TWO, "error", "2 of 3 nodes can take a worker", "cluster.nodes"),
    "fewer will do": ({"nodes": 3, "min_nodes": 2}, TWO, "warning", "starts with fewer", "cluster.nodes"),
    "being repaired": (
        *({}, second(labels={HEALTH: "UnschedulablePendingReboot"})),
        *("error", f"node-2: {HEALTH} is UnschedulablePendingReboot, not Schedulable", "HyperPod repairs it"),
    ),
    "not HyperPod's": ({}, second(labels={HEALTH: None}), "error", "is not set", "require_healthy_nodes"),
    "not ready": (
        *({}, second(ready={"status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped"})),
        *("error", "node-2: not Ready (NodeStatusUnknown: Kubelet stopped)", "kubectl describe node node-2"),
    ),
    "cordoned": ({}, second(spec={"unschedulable": True}), "error", "node-2: cordoned", "kubectl uncordon node-2"),
    "tainted": (
        *({}, second(spec={"taints": [{"key": "team", "value": "b", "effect": "NoSchedule"}]})),
        *("error", "node-2: taint team=b:NoSchedule", "cluster.tolerations"),
    ),
    "too small": ({"cpu": 130}, TWO, "error", "too little for one worker: cpu 130 of 127.6", "lower cluster.cpu"),
    "devices gone": (
        *({}, second(room={"aws.amazon.com/neuron": "15"})),
        *("error", "aws.amazon.com/neuron 16 of 15", "device plugin"),
    ),
    "all of another type": (
        *({"instance_type": "trn2.48xlarge"}, TWO),
        *("error", "2 × ml.trn1.32xlarge; ml.trn2.48xlarge was asked for", "cluster.instance_type"),
    ),
    "selector": ({"node_selector": {"zone": "a"}}, TWO, "error", "zone is not set, not a", "node_selector"),
    "none": (
        {},
        {"nodes": items()},
        "error",
        "0 of 2 nodes can take a worker: there is no other node",
        "cluster.nodes",
    ),
    "may not list": ({}, {"nodes": FORBIDDEN}, "warning", "may not list nodes", "verbs: [list]"),
    "no answer": ({}, {"nodes": SILENT}, "warning", "ReadTimeoutError", "try again"),
    "busy": (
        *({}, {"pods": items(good.pod("big", "node-2", neuron="1", cpu="1"), good.pod("small", "node-2", cpu="1"))}),
        *("warning", "only 1 are free now: node-2: other/big, other/small", "startup_s"),
    ),
}


@pytest.mark.parametrize("case", NODES.values(), ids=NODES)
def test_nodes(case: Case) -> None:
    expect(case, "nodes")


def test_every_sick_node_is_named_up_to_four() -> None:
    sick = [node(f"node-{index}", labels={HEALTH: "Unschedulable"}) for index in range(9)]
    (found,) = [item for item in judge(good.target(), {"nodes": items(*sick)}) if item.check == "nodes"]
    assert found.message.count("is Unschedulable") == 4
    assert "and 5 more" in found.message


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        (FORBIDDEN, "how many are free is not known (pods of other namespaces may not be listed)"),
        (items(**{"continue": "token"}), "how many are free is not known (there are too many pods)"),
        (items(good.pod("light", "node-1", cpu="1")), "2 are free now"),
    ],
    ids=["forbidden", "too many", "light pods"],
)
def test_how_many_nodes_are_free_is_told_where_it_can_be_known(pods: Answer, words: str) -> None:
    (found,) = [item for item in judge(good.target(), {"pods": pods}) if item.check == "nodes"]
    assert found.severity == "ok"
    assert words in found.message


def test_tolerated_and_soft_taints_are_no_obstacle() -> None:
    taints = [
        {"key": "aws.amazon.com/neuron", "value": "true", "effect": "NoSchedule"},
        {"key": "team", "value": "a", "effect": "NoSchedule"},
        {"key": "soft", "effect": "PreferNoSchedule"},
    ]
    aim = good.target(tolerations=[{"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}])
    spoiled = {**second(spec={"taints": taints})}
    assert not_ok(judge(aim, spoiled)) == []


STEPS: dict[str, Case] = {
    "too large": (
        {"steps": {"cpu": 200}},
        {},
        "warning",
        "2 × has too little for one worker: cpu 200",
        "cluster.steps.cpu",
    ),
    "selector": (
        *({"steps": {"node_selector": {"pool": "cpu"}}}, {}),
        *("warning", "2 × pool is not set, not cpu", "cluster.steps.node_selector"),
    ),
}


@pytest.mark.parametrize("case", STEPS.values(), ids=STEPS)
def test_pods_of_the_flows_own_steps(case: Case) -> None:
    expect(case, "steps")


@pytest.mark.parametrize(
    ("labels", "instance_type", "is_warned"),
    [
        ({"hyperpod-lora/neuron-driver": "2.31.7.0"}, "trn1.32xlarge", True),
        ({"hyperpod-lora/neuron-driver": "2.28.0"}, "trn1.32xlarge", False),
        ({"hyperpod-lora/neuron-driver": "new"}, "trn1.32xlarge", False),
        ({}, "trn1.32xlarge", False),
        ({"hyperpod-lora/neuron-driver": "2.31.7.0"}, "trn2.48xlarge", False),
    ],
    ids=["new", "old", "no version", "no label", "not a node of ours"],
)
def test_a_driver_that_refuses_the_image_is_warned_of(
    labels: dict[str, str], instance_type: str, is_warned: bool
) -> None:
    worker = {"nodeSelector": {INSTANCE_TYPE: f"ml.{instance_type}"}}
    found = judge_drivers(items(node("node-1", labels=labels)), worker)
    assert [item.severity for item in found] == ["warning"] * is_warned
    if found:
        assert "node-1: 2.31.7.0" in found[0].message
    assert judge_drivers(FORBIDDEN, worker) == []


def test_only_the_neuron_backend_asks_for_drivers() -> None:
    spoiled = second(labels={"hyperpod-lora/neuron-driver": "2.31.7.0"})
    checks = [item.check for item in judge(good.target(), spoiled)]
    aim = good.target()
    launcher = aim.settings.launcher.model_copy(update={"backend": "neuron"})
    on_neuron = replace(aim, settings=aim.settings.model_copy(update={"launcher": launcher}))
    assert "drivers" not in checks
    assert "drivers" in [item.check for item in judge(on_neuron, spoiled)]
