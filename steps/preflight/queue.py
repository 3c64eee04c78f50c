"""Could Kueue ever admit the job? LocalQueue, ClusterQueue and its quota, the flavors' nodes and topology, the priority. Pure.

What Kueue can never admit it leaves waiting, without a word to anyone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from steps.preflight.finding import Finding, error, ok, warning
from steps.preflight.quantity import Amounts, amount, lacking
from steps.preflight.question import Answer, Question, condition, unread
from steps.pytorchjob.pod_template import EFA
from steps.settings.cluster import Cluster

KUEUE = "kueue.x-k8s.io"
GROUP = Question(f"/apis/{KUEUE}", resource=f"/apis/{KUEUE}")
Answers = Mapping[str, Answer]


def questions(cluster: Cluster, known: Answers) -> dict[str, Question]:
    """What to ask next: each answer names what the next question is about; empty at the end."""
    if not cluster.queue or not _is_ok(known, "kueue"):
        return {}
    base = f"/apis/{known['kueue'].body.get('preferredVersion', {}).get('groupVersion', f'{KUEUE}/v1beta1')}"
    wanted = {"localqueue": f"{base}/namespaces/{cluster.namespace}/localqueues/{cluster.queue}"}
    if cluster.priority:
        wanted["priority"] = f"{base}/workloadpriorityclasses/{cluster.priority}"
    if _is_ok(known, "localqueue"):
        wanted["clusterqueue"] = f"{base}/clusterqueues/{_clusterqueue_of(known)}"
    if _is_ok(known, "clusterqueue"):
        names = {flavor["name"] for group in _groups(known) for flavor in group.get("flavors") or ()}
        wanted |= {f"flavor {name}": f"{base}/resourceflavors/{name}" for name in names}
    return {
        key: Question(path, resource=path.split("/")[-2], group=KUEUE)
        for key, path in wanted.items()
        if key not in known
    }


def _is_ok(known: Answers, key: str) -> bool:
    return key in known and known[key].is_ok


def _clusterqueue_of(known: Answers) -> str:
    return str((known["localqueue"].body.get("spec") or {}).get("clusterQueue", ""))


def _groups(known: Answers) -> list[Mapping[str, Any]]:
    return list((known["clusterqueue"].body.get("spec") or {}).get("resourceGroups") or ())


def judge(cluster: Cluster, known: Answers, total: Amounts, pod: Mapping[str, Any]) -> list[Finding]:
    """All about the queue, for a job that asks for `total` with pods like `pod`; nothing where none is configured."""
    if not cluster.queue:
        return []
    if known["kueue"].is_missing:
        fix = "install Kueue (HyperPod: the task governance add-on), or empty cluster.queue"
        return [error("queue", "Kueue is not installed, but cluster.queue is set", fix)]
    if not known["kueue"].is_ok:
        return [unread("queue", GROUP, known["kueue"], "the queue")]
    return [*_priority(cluster, known), *(_local(cluster, known) or _admission(cluster, known, total, pod))]


def _priority(cluster: Cluster, known: Answers) -> list[Finding]:
    if not cluster.priority:
        return []
    answer = known["priority"]
    if answer.is_missing:
        fix = "correct cluster.priority: kubectl get workloadpriorityclasses"
        return [error("queue", f"there is no WorkloadPriorityClass {cluster.priority}", fix)]
    if not answer.is_ok:
        return [
            unread("queue", Question("", resource="workloadpriorityclasses", group=KUEUE), answer, "the priority class")
        ]
    return [ok("queue", f"priority {cluster.priority} is {answer.body.get('value')}")]


def _local(cluster: Cluster, known: Answers) -> list[Finding]:
    """What is wrong with the LocalQueue, or hides its ClusterQueue."""
    answer, where = known["localqueue"], f"LocalQueue {cluster.queue} in namespace {cluster.namespace}"
    if answer.is_missing:
        fix = f"correct cluster.queue: kubectl get localqueues -n {cluster.namespace}"
        return [error("queue", f"there is no {where}", fix)]
    if not answer.is_ok:
        return [unread("queue", Question("", resource="localqueues", group=KUEUE), answer, "the queue")]
    upper = known["clusterqueue"]
    if upper.is_missing:
        return [
            error("queue", f"{where} points to ClusterQueue {_clusterqueue_of(known)}, which is not there", "make it")
        ]
    for kind, thing in (("LocalQueue", answer), ("ClusterQueue", upper)):
        active = condition(thing.body, "Active")
        if active.get("status") == "False":
            name = cluster.queue if thing is answer else _clusterqueue_of(known)
            what = f"{kind} {name} is not active: {active.get('message') or active.get('reason')}"
            where = f" -n {cluster.namespace}" if thing is answer else ""
            return [error("queue", what, f"kubectl describe {kind.lower()} {name}{where}, and ask who runs it")]
    if not upper.is_ok:
        question = Question("", resource="clusterqueues", group=KUEUE)
        return [unread("queue", question, upper, "whether the quota is large enough for the job")]
    return []


def _admission(cluster: Cluster, known: Answers, total: Amounts, pod: Mapping[str, Any]) -> list[Finding]:
    """Namespace, quota, topology: everything that could keep it waiting for ever."""
    name, spec = _clusterqueue_of(known), known["clusterqueue"].body.get("spec") or {}
    labels = (spec.get("namespaceSelector") or {}).get("matchLabels") or {}
    if (
        spec.get("namespaceSelector") is None
        or labels.get("kubernetes.io/metadata.name", cluster.namespace) != cluster.namespace
    ):
        what = f"ClusterQueue {name} takes nothing from namespace {cluster.namespace} (its namespaceSelector)"
        return [error("queue", what, "have the selector changed, or use that team's namespace")]
    found = [*_uncovered(known, name, total)]
    for group in _groups(known):
        found += _group(cluster, known, group, {**total, "pods": Decimal(cluster.nodes)}, pod)
    if cluster.topology and not any(_topology(known, flavor) for flavor in _flavors(known)):
        what = f"no flavor of ClusterQueue {name} has a topology, but cluster.topology is {cluster.topology}"
        found.append(error("queue", f"{what}: the job would wait for ever", "empty cluster.topology"))
    return found or [ok("queue", f"{cluster.queue} → {name} is active, and its quota holds the job")]


def _flavors(known: Answers) -> Iterator[str]:
    return (key.removeprefix("flavor ") for key in known if key.startswith("flavor "))


def _topology(known: Answers, flavor: str) -> bool:
    """Whether it has one; a flavor that may not be read gets the benefit of the doubt."""
    answer = known[f"flavor {flavor}"]
    return not answer.is_ok or bool((answer.body.get("spec") or {}).get("topologyName"))


def _uncovered(known: Answers, name: str, total: Amounts) -> Iterator[Finding]:
    covered = {resource for group in _groups(known) for resource in group.get("coveredResources") or ()}
    for resource in sorted(total.keys() - covered):
        what = f"ClusterQueue {name} has no quota for {resource}, which the job asks for: it would wait for ever"
        if resource == EFA:  # Kueue is often told to leave network adapters out of account
            fix = "nothing, if Kueue's excludeResourcePrefixes names it; else have a quota added"
            yield warning("queue", what.replace("it would", "without an exception it would"), fix)
        else:
            yield error("queue", what, "have a quota for it added (config/cluster/queue-example.yaml)")


def _group(
    cluster: Cluster, known: Answers, group: Mapping[str, Any], total: Amounts, pod: Mapping[str, Any]
) -> list[Finding]:
    """One flavor has to hold all that the job asks for of this group."""
    wanted = {key: value for key, value in total.items() if key in (group.get("coveredResources") or ())}
    if not wanted:
        return []
    reasons: list[str] = []
    later: list[list[str]] = []
    for flavor in group.get("flavors") or ():
        wrong = _other_nodes(known, flavor["name"], pod) or lacking(wanted, _limits(known, flavor, borrowed=True))
        reasons += [f"flavor {flavor['name']}: {', '.join(wrong)}"] if wrong else []
        if not wrong:
            later.append(lacking(wanted, _left(known, flavor)))
    name, suffix = _clusterqueue_of(known), f"cluster.nodes is {cluster.nodes}"
    if not later:
        what = f"ClusterQueue {name} can never admit the job: {'; '.join(reasons) or 'it has no flavor'}"
        return [error("queue", what, f"ask for less ({suffix}), or have the quota raised")]
    if all(later):
        what = f"the job has to wait in {name}: {', '.join(later[0])} free now"
        return [warning("queue", what, "nothing: it waits its turn, deadlines.queue_s long")]
    return []


def _other_nodes(known: Answers, flavor: str, pod: Mapping[str, Any]) -> list[str]:
    answer = known[f"flavor {flavor}"]
    if answer.is_missing:
        return ["there is no such ResourceFlavor"]
    labels, selector = (answer.body.get("spec") or {}).get("nodeLabels") or {}, pod.get("nodeSelector") or {}
    return [f"its nodes have {key}={value}" for key, value in labels.items() if selector.get(key, value) != value]


def _limits(known: Answers, flavor: Mapping[str, Any], *, borrowed: bool) -> Amounts:
    """Its quota; with what may be borrowed: without a limit, a cohort may lend anything."""
    spec = known["clusterqueue"].body.get("spec") or {}
    has_cohort = bool(spec.get("cohort") or spec.get("cohortName"))
    found: Amounts = {}
    for item in flavor.get("resources") or ():
        own, most = amount(item.get("nominalQuota", 0)), item.get("borrowingLimit")
        lent = Decimal("Infinity") if most is None else amount(most)
        found[item["name"]] = own + (lent if borrowed and has_cohort else 0)
    return found


def _left(known: Answers, flavor: Mapping[str, Any]) -> Amounts:
    """What nobody has reserved of its own quota."""
    left = _limits(known, flavor, borrowed=False)
    reserved = (known["clusterqueue"].body.get("status") or {}).get("flavorsReservation") or ()
    for item in (part for used in reserved if used["name"] == flavor["name"] for part in used.get("resources") or ()):
        left[item["name"]] = left.get(item["name"], Decimal(0)) - amount(item.get("total", 0))
    return left
