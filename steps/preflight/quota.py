"""Do the namespace's ResourceQuotas leave room for the job? Pure.

Where they do not, the operator's pods are refused one by one, and the job itself looks as if nothing were wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from steps.preflight.finding import Finding, error, ok, warning
from steps.preflight.quantity import Amounts, amounts, asked_by, lacking, times
from steps.preflight.question import Answer, Question, unread
from steps.settings.cluster import Cluster

OTHER_PODS = frozenset({"BestEffort", "NotTerminating"})
"""Scopes that our pods are not in: they have requests and a deadline."""


def question(namespace: str) -> Question:
    """List them."""
    return Question(f"/api/v1/namespaces/{namespace}/resourcequotas", "list", "resourcequotas")


def judge(cluster: Cluster, answer: Answer, pod: Mapping[str, Any]) -> list[Finding]:
    """Room for all workers, now and at all."""
    if not answer.is_ok:
        return [
            unread("quota", question(cluster.namespace), answer, "whether a ResourceQuota leaves room for the workers")
        ]
    wanted = demand(cluster, pod)
    found = [finding for item in answer.items if _applies(item) for finding in _quota(cluster, item, wanted)]
    number = f"{len(answer.items)} ResourceQuota{'s' * (len(answer.items) != 1)}"
    return found or [
        ok("quota", f"{number} in the namespace, with room for the job" if answer.items else "no ResourceQuota")
    ]


def demand(cluster: Cluster, pod: Mapping[str, Any]) -> Amounts:
    """What the job takes, in the words of a ResourceQuota."""
    requests, limits = times(cluster.nodes, asked_by(pod)), times(cluster.nodes, asked_by(pod, "limits"))
    nodes = Decimal(cluster.nodes)
    found = {"pods": nodes, "count/pods": nodes, "services": nodes, "count/services": nodes}
    found["count/pytorchjobs.kubeflow.org"] = Decimal(1)
    found |= {f"requests.{name}": value for name, value in requests.items()}
    found |= {f"limits.{name}": value for name, value in limits.items()}
    return found | {name: value for name, value in requests.items() if name in ("cpu", "memory")}


def _applies(item: Mapping[str, Any]) -> bool:
    spec = item.get("spec") or {}
    return not OTHER_PODS.intersection(spec.get("scopes") or ()) and not spec.get("scopeSelector")


def _quota(cluster: Cluster, item: Mapping[str, Any], wanted: Amounts) -> Iterator[Finding]:
    name, status = item["metadata"]["name"], item.get("status") or {}
    hard = amounts(status.get("hard") or (item.get("spec") or {}).get("hard"))
    used = amounts(status.get("used"))
    here = {key: value for key, value in wanted.items() if key in hard}
    left = {key: value - used.get(key, Decimal(0)) for key, value in hard.items()}
    never, later = lacking(here, hard), lacking(here, left)
    if never:
        what = f"ResourceQuota {name} can never hold the job ({cluster.nodes} workers): {', '.join(never)}"
        yield error("quota", what, "ask for less (cluster.nodes, cpu, memory_gib), or have the quota raised")
    elif later:
        what = f"ResourceQuota {name} has no room now: {', '.join(later)} left"
        yield warning("quota", what, "wait until others have ended; the workers' pods are refused until then")
    for key in ("limits.cpu", "limits.memory"):
        if key in hard and key not in here:
            what = (
                f"ResourceQuota {name} wants a limit of {key.partition('.')[2]} on every pod, and the workers have none"
            )
            yield warning("quota", what, "a LimitRange with a default limit in the namespace gives them one")
