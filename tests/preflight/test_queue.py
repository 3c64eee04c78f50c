"""Kueue and ResourceQuotas: what would wait for ever is refused, what only waits is told."""

from __future__ import annotations

from typing import Any

import pytest

from steps.preflight.question import Answer
from tests.preflight import preflight_answers as good
from tests.preflight.preflight_answers import (
    FORBIDDEN,
    MISSING,
    QUEUED,
    SILENT,
    TYPE,
    Case,
    expect,
    items,
    judge,
    node,
    not_ok,
)

QUEUE: dict[str, Case] = {
    "no Kueue": (QUEUED, {"kueue": MISSING}, "error", "Kueue is not installed", "task governance"),
    "Kueue unread": (QUEUED, {"kueue": SILENT}, "warning", "the queue is not checked", "try again"),
    "priority unread": (QUEUED, {"priority": FORBIDDEN}, "warning", "the priority class is not checked", "grant it"),
    "no queue": (
        QUEUED,
        {"localqueue": MISSING},
        "error",
        "there is no LocalQueue research",
        "kubectl get localqueues",
    ),
    "no priority": (
        QUEUED,
        {"priority": MISSING},
        "error",
        "no WorkloadPriorityClass training-priority",
        "cluster.priority",
    ),
    "queue stopped": (
        *(
            QUEUED,
            {
                "localqueue": Answer(
                    200,
                    {
                        "spec": {"clusterQueue": "team-cq"},
                        "status": {
                            "conditions": [{"type": "Active", "status": "False", "message": "LocalQueue is stopped"}]
                        },
                    },
                )
            },
        ),
        *(
            "error",
            "LocalQueue research is not active: LocalQueue is stopped",
            "kubectl describe localqueue research -n ",
        ),
    ),
    "no cluster queue": (QUEUED, {"clusterqueue": MISSING}, "error", "team-cq, which is not there", "make it"),
    "cluster queue off": (
        *(
            QUEUED,
            {
                "clusterqueue": Answer(
                    200,
                    good.cluster_queue(
                        status={"conditions": [{"type": "Active", "status": "False", "reason": "FlavorNotFound"}]}
                    ),
                )
            },
        ),
        *("error", "ClusterQueue team-cq is not active: FlavorNotFound", "kubectl describe clusterqueue team-cq"),
    ),
    "may not get it": (QUEUED, {"clusterqueue": FORBIDDEN}, "warning", "may not get clusterqueues", "kueue.x-k8s.io"),
    "may not get the queue": (
        QUEUED,
        {"localqueue": FORBIDDEN},
        "warning",
        "may not get localqueues",
        "kueue.x-k8s.io",
    ),
    "other namespaces": (
        *(QUEUED, {"clusterqueue": Answer(200, good.cluster_queue(spec={"namespaceSelector": None}))}),
        *("error", "takes nothing from namespace hyperpod-ns-research", "selector"),
    ),
    "quota too small": (
        *({**QUEUED, "nodes": 3}, {"nodes": items(*(node(f"node-{index}") for index in range(3)))}),
        *("error", "can never admit the job: flavor trn1: ", "cluster.nodes is 3"),
    ),
    "no quota for a resource": (
        *(QUEUED, {"clusterqueue": Answer(200, good.cluster_queue(spec={"resourceGroups": []}))}),
        *("error", "has no quota for", "queue-example.yaml"),
    ),
    "no free quota": (
        *(
            QUEUED,
            {
                "clusterqueue": Answer(
                    200,
                    good.cluster_queue(
                        status={
                            "flavorsReservation": [
                                {"name": "trn1", "resources": [{"name": "aws.amazon.com/neuron", "total": "16"}]}
                            ]
                        }
                    ),
                )
            },
        ),
        *("warning", "has to wait in team-cq: aws.amazon.com/neuron 32 of 16 free now", "queue_s"),
    ),
    "other nodes": (
        *(QUEUED, {"flavor trn1": good.flavor(nodeLabels={TYPE: "ml.trn2.48xlarge"})}),
        *("error", f"its nodes have {TYPE}=ml.trn2.48xlarge", "cluster.nodes is 2"),
    ),
    "no flavor": (QUEUED, {"flavor trn1": MISSING}, "error", "there is no such ResourceFlavor", "quota"),
    "no topology": ({**QUEUED, "topology": "required"}, {}, "error", "has a topology", "empty cluster.topology"),
    "not held": (QUEUED, {"job": Answer(201, {"spec": {"runPolicy": {}}})}, "error", "past every quota", "frameworks"),
}


@pytest.mark.parametrize("case", QUEUE.values(), ids=QUEUE)
def test_queue(case: Case) -> None:
    cluster, spoiled, severity, words, fix = case
    found = [item for item in not_ok(judge(good.target(**cluster), spoiled)) if item.check == "queue"]
    assert {item.severity for item in found} >= {severity}, found
    assert any(words in item.message and fix in item.fix for item in found if item.severity == severity), found


def test_a_cohort_may_lend_what_the_quota_lacks_so_the_job_only_waits() -> None:
    lent = {"clusterqueue": Answer(200, good.cluster_queue(spec={"cohort": "all"}))}
    nodes = {"nodes": items(*(node(f"node-{index}") for index in range(3)))}
    (found,) = not_ok(judge(good.target(**QUEUED, nodes=3), {**lent, **nodes}))
    assert (found.check, found.severity) == ("queue", "warning")
    assert "has to wait" in found.message


def test_a_flavor_with_a_topology_serves_a_job_that_wants_one() -> None:
    spoiled = {"flavor trn1": good.flavor(topologyName="racks")}
    assert not_ok(judge(good.target(**QUEUED, topology="required"), spoiled)) == []


def test_without_a_priority_none_is_looked_at() -> None:
    aim = good.target(queue="research")
    found = judge(aim)
    assert not_ok(found) == []
    assert "priority" not in good.answers(aim)
    assert not any("priority" in item.message for item in found if item.check == "queue")


def test_a_quota_for_what_the_job_does_not_ask_for_does_not_count() -> None:
    queue = good.cluster_queue()
    gpus = {"name": "nvidia.com/gpu", "nominalQuota": "0"}
    queue["spec"]["resourceGroups"].append(
        {"coveredResources": ["nvidia.com/gpu"], "flavors": [{"name": "trn1", "resources": [gpus]}]}
    )
    assert not_ok(judge(good.target(**QUEUED), {"clusterqueue": Answer(200, queue)})) == []


def test_adapters_without_a_quota_only_warn_since_kueue_is_often_told_to_leave_them_out() -> None:
    queue = good.cluster_queue()
    queue["spec"]["resourceGroups"][0]["coveredResources"].remove("vpc.amazonaws.com/efa")
    (found,) = not_ok(judge(good.target(**QUEUED), {"clusterqueue": Answer(200, queue)}))
    assert (found.severity, "excludeResourcePrefixes" in found.fix) == ("warning", True)


QUOTAS: dict[str, Case] = {
    "never": (
        *({}, {"quotas": good.quota({"requests.aws.amazon.com/neuron": "16"})}),
        *("error", "team can never hold the job (2 workers): requests.aws.amazon.com/neuron 32 of 16", "cluster.nodes"),
    ),
    "not now": (
        *({}, {"quotas": good.quota({"pods": "10"}, {"pods": "9"})}),
        *("warning", "team has no room now: pods 2 of 1 left", "wait"),
    ),
    "no limit": ({}, {"quotas": good.quota({"limits.cpu": "900"})}, "warning", "wants a limit of cpu", "LimitRange"),
    "memory": ({}, {"quotas": good.quota({"memory": "100Gi"})}, "error", "memory 920Gi of 100Gi", "memory_gib"),
    "may not list": ({}, {"quotas": FORBIDDEN}, "warning", "may not list resourcequotas", "verbs: [list]"),
}


@pytest.mark.parametrize("case", QUOTAS.values(), ids=QUOTAS)
def test_resource_quotas(case: Case) -> None:
    expect(case, "quota")


@pytest.mark.parametrize(
    "spec", [{"scopes": ["BestEffort"]}, {"scopes": ["NotTerminating"]}, {"scopeSelector": {"x": 1}}]
)
def test_a_quota_for_other_pods_does_not_count(spec: dict[str, Any]) -> None:
    spoiled = {"quotas": good.quota({"pods": "0"}, **spec)}
    assert not_ok(judge(good.target(), spoiled)) == []
