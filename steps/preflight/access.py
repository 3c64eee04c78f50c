"""May the account do what a run does? The verbs of config/cluster/rbac.yaml, asked one by one, and what each is for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steps.preflight.finding import Finding, error, ok, warning
from steps.preflight.question import ROLE, Answer, Question, rule
from steps.settings.cluster import Cluster

KUEUE = "kueue.x-k8s.io"
CRD = "pytorchjobs.kubeflow.org"


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one kind of thing."""

    verb: str
    resource: str
    group: str = ""
    without: str = ""
    """What is missing without it; empty: nothing works without it."""
    is_used_here: bool = False
    """The preflight itself needs it, and so sees for itself whether the asking account has it."""
    is_cluster_wide: bool = False
    name: str = ""

    @property
    def key(self) -> str:
        """`create pytorchjobs`."""
        return f"{self.verb} {self.resource}"


def rights(cluster: Cluster) -> tuple[Right, ...]:
    """All that a run on this cluster uses."""
    group, polled = "kubeflow.org", "changes are polled every 15 s instead of watched"
    always = (
        *(Right(verb, "pytorchjobs", group) for verb in ("create", "get", "list", "delete")),
        *(Right(verb, "pods") for verb in ("get", "list")),
        Right("get", "pods/log"),
        Right("watch", "pytorchjobs", group, polled),
        Right("watch", "pods", "", polled),
        Right("list", "events", "", "a message cannot say why pods do not start (quota, image, scheduling)"),
        Right(
            "get", "nodes", "", "pods of a dead node are waited for until the deletion deadline", is_cluster_wide=True
        ),
        Right("list", "nodes", "", "the nodes are not checked", is_used_here=True, is_cluster_wide=True),
        _read("customresourcedefinitions", "apiextensions.k8s.io", "the operator's version is not checked", CRD),
        Right("get", "persistentvolumeclaims", "", "the claim is not checked", is_used_here=True),
        Right("list", "resourcequotas", "", "whether a ResourceQuota leaves room is not checked", is_used_here=True),
        Right("list", "limitranges", "", "whether a LimitRange refuses the workers is not checked", is_used_here=True),
        Right("get", "namespaces", "", "whether PodSecurity refuses the workers is not checked", is_used_here=True),
    )
    return (*always, *_queue_rights(cluster)) if cluster.queue else always


def _queue_rights(cluster: Cluster) -> Iterator[Right]:
    yield Right("get", "localqueues", KUEUE, "the queue is not checked", is_used_here=True)
    yield Right("list", "workloads", KUEUE, "a message cannot say what the job waits for in the queue")
    yield _read("clusterqueues", KUEUE, "the queue's quota is not checked")
    yield _read("resourceflavors", KUEUE, "the quota's nodes are not checked")
    if cluster.priority:
        yield _read("workloadpriorityclasses", KUEUE, "the priority is not checked")


def _read(resource: str, group: str, without: str, name: str = "") -> Right:
    return Right("get", resource, group, without, is_used_here=True, is_cluster_wide=True, name=name)


def ask_self(right: Right, namespace: str) -> Question:
    """May I?"""
    return _review("SelfSubjectAccessReview", {"resourceAttributes": _attributes(right, namespace)})


def ask_for(right: Right, namespace: str, account: str) -> Question:
    """May that service account? Only administrators may ask."""
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    spec = {"resourceAttributes": _attributes(right, namespace), "user": account, "groups": groups}
    return _review("SubjectAccessReview", spec)


def _review(kind: str, spec: Mapping[str, Any]) -> Question:
    plural, group = f"{kind.lower()}s", "authorization.k8s.io"
    body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
    return Question(f"/apis/{group}/v1/{plural}", "create", plural, group, body=body)


def _attributes(right: Right, namespace: str) -> dict[str, str]:
    resource, _, part = right.resource.partition("/")
    found = {"verb": right.verb, "resource": resource, "group": right.group, "name": right.name}
    if part:
        found["subresource"] = part
    return {**found, **({} if right.is_cluster_wide else {"namespace": namespace})}


def account_of_steps(cluster: Cluster) -> str:
    """Whose rights count: that of the pod which launches the training; empty if it is whoever calls."""
    name = cluster.steps.service_account or "default"
    return f"system:serviceaccount:{cluster.namespace}:{name}" if cluster.steps.enabled else ""


def judge(cluster: Cluster, me: str, own: Mapping[str, Answer], theirs: Mapping[str, Answer]) -> list[Finding]:
    """The rights of the account that will launch: `theirs` where it is another one and could be asked about, else `own`."""
    launcher = account_of_steps(cluster)
    if launcher in ("", me):
        return _findings(
            cluster, [item for item in rights(cluster) if not item.is_used_here], own, me or "this account"
        )
    if theirs and all(answer.is_ok for answer in theirs.values()):
        return _findings(cluster, rights(cluster), theirs, launcher)
    note = f"; the steps run as {launcher}, whose rights `start` checks from its pod"
    found = _findings(cluster, [item for item in rights(cluster) if not item.is_used_here], own, me or "this account")
    return [Finding(item.check, "warning" if item.fix else "ok", item.message + note, item.fix) for item in found]


def _findings(cluster: Cluster, wanted: Sequence[Right], answers: Mapping[str, Answer], who: str) -> list[Finding]:
    denied = [item for item in wanted if answers[item.key].is_ok and not _is_allowed(answers[item.key])]
    silent = [item for item in wanted if not answers[item.key].is_ok]
    where = f"in namespace {cluster.namespace}"
    found = [_denied(group, who, where) for group in _grouped(denied)]
    if silent:
        what = f"could not be asked: may {who} {', '.join(item.key for item in silent)}"
        found.append(warning("permissions", f"{what} ({answers[silent[0].key].message})", "try again"))
    if not found:
        found.append(ok("permissions", f"{who} may do all that a run does {where}"))
    return found


def _is_allowed(answer: Answer) -> bool:
    return bool((answer.body.get("status") or {}).get("allowed"))


def _grouped(denied: Sequence[Right]) -> list[list[Right]]:
    """Verbs of the same kind of thing, whose lack has the same consequence, are told together."""
    found: dict[tuple[str, ...], list[Right]] = {}
    for item in denied:
        found.setdefault((item.group, item.resource, item.without), []).append(item)
    return list(found.values())


def _denied(together: Sequence[Right], who: str, where: str) -> Finding:
    right, verbs = together[0], [item.verb for item in together]
    where = "in the whole cluster" if right.is_cluster_wide else where
    what = f"{who} may not {', '.join(verbs)} {right.resource} {where}"
    fix = f"kubectl apply -f {ROLE}, or add the rule {rule(verbs, right.resource, right.group)}"
    if right.without:
        return warning("permissions", f"{what}: {right.without}", fix)
    return error("permissions", what, fix)
