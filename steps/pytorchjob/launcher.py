"""The cluster's launcher: an attempt is one PyTorchJob. Satisfies `launcher.Launcher`; the client is handed in.

It keeps nothing but what the watch shows: names are deterministic, so another launcher, in another process, finds the same job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from steps.errors import ClusterError
from steps.job.job import Job
from steps.job.local_launcher import tail
from steps.job.snapshot import JobSnapshot, Phase, Reason
from steps.protocol.rundir import write_json
from steps.pytorchjob import manifest as pytorchjob
from steps.pytorchjob.exit_reports import read_reports, with_reports
from steps.pytorchjob.informer import Informer
from steps.pytorchjob.manifest import LABEL
from steps.pytorchjob.node_marks import is_unexplained, mark_of, with_marks
from steps.pytorchjob.onlooker import Onlooker
from steps.pytorchjob.snapshot import (
    GONE_WITH_NODE,
    View,
    has_conditions,
    has_ended,
    index_of,
    is_suspended,
    snapshot_of_cluster,
)
from steps.pytorchjob.spec import JobSpec

if TYPE_CHECKING:
    from steps.pytorchjob.client import Kube

NOTICE_S = 60.0
"""Within this time the operator has taken notice of a job, or never will: 1.7.0 has no webhook that would refuse one."""
ASK_SOON_S, ASK_AGAIN_S = 5.0, 30.0
"""Between two questions for events: in the first minute until they say something, and later."""
CONFIRM_S = 2.0
"""Between two looks for a job that the watch does not show."""
KEPT = ("involvedObject", "reason", "message", "type", "count", "lastTimestamp")


@dataclass(slots=True)
class _Watched:
    """What this process knows of one attempt."""

    informer: Informer
    since_s: float
    onlooker: Onlooker
    has_been: bool = False
    """The job was seen."""
    has_looked_again: bool = False
    """After the job's failure, which may be told of before its pods'."""
    hint: str = ""
    asked_s: float = float("-inf")
    confirmed_s: float = float("-inf")
    node_asked_s: float = float("-inf")
    leaving_s: dict[str, float] = field(default_factory=dict)
    """When a pod was first seen on its way out, by UID."""
    dead: set[str] = field(default_factory=set)
    """UIDs of pods whose node does not answer."""
    marks: dict[str, str] = field(default_factory=dict)
    """What the platform says about nodes whose workers were ended without a word."""


class KubeLauncher:
    """Runs attempts as PyTorchJobs in one namespace."""

    def __init__(
        self,
        spec: JobSpec,
        kube: Kube,
        *,
        notice: Callable[[str], None] = lambda sentence: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._kube, self._notice, self._clock = spec, kube, notice, clock
        self._watched: dict[int, _Watched] = {}

    def create(self, job: Job, attempt: int, *, avoid_nodes: Sequence[str] = ()) -> None:
        """Create the attempt's PyTorchJob; one that is there already is adopted if it is the same.

        Raises:
            ClusterError: refused, the API is away, or the name belongs to something else.
        """
        watched = self._watch(job, attempt)  # first: without the right to look, nothing is made
        manifest = pytorchjob.build(self._spec, job, attempt, avoid_nodes=avoid_nodes)
        name = manifest["metadata"]["name"]
        made = self._kube.create(manifest)
        if made is not None:
            self._notice(self._introduce(name, job))
        else:
            made = self._kube.job(name)
            if made is not None:
                self._require_ours(made, manifest)
                self._notice(f"PyTorchJob {self._kube.namespace}/{name} is there already; watching over it from here")
        if made is not None:
            watched.informer.note(made)

    def read(self, job: Job, attempt: int) -> JobSnapshot:
        """What the watch shows.

        Raises:
            ClusterError: the API has been away for longer than `cluster.api_patience_s`.
        """
        watched = self._watch(job, attempt)
        self._require_api(watched)
        found = watched.informer.job or self._confirm_gone(watched, job, attempt)
        watched.has_been = watched.has_been or found is not None
        self._notice_dead(watched, watched.informer.pods)
        self._ask(watched, job, found, watched.informer.pods)
        watched.onlooker.look(found, watched.informer.pods, self._clock() - watched.since_s, hint=watched.hint)
        snapshot = self._snapshot(watched, job, found)
        if snapshot.phase is Phase.FAILED and not watched.has_looked_again:
            watched.has_looked_again = True
            watched.informer.look_again()
            snapshot = self._snapshot(watched, job, found)
            nodes = {worker.node for worker in snapshot.workers if is_unexplained(worker)}
            watched.marks = {node: mark_of(self._kube.node(node) or {}) for node in nodes}
        if snapshot.names_another:
            reports = read_reports(job.directory.attempt(attempt), job.nodes)
            snapshot = with_reports(snapshot, reports, job.processes)
        return self._judge(watched, job, attempt, with_marks(snapshot, watched.marks), found)

    def _snapshot(self, watched: _Watched, job: Job, found: Mapping[str, Any] | None) -> JobSnapshot:
        pods, recovery = watched.informer.pods, self._spec.cluster.recovery
        view = View(found, pods, job.nodes, job.processes, frozenset(watched.dead), watched.hint, recovery)
        return snapshot_of_cluster(view)

    def delete(self, job: Job, attempt: int, *, grace_s: float) -> None:
        """Ask the workers to save and stop, then delete the job; its pods go with it.

        The kubelet's grace is in the pod; a shorter one is told through the shared directory, since we may not delete pods.
        """
        write_json(job.directory.files(attempt).stop, {"grace_s": grace_s})
        self._kube.delete(pytorchjob.name_of(self._spec, job, attempt))

    def logs(self, job: Job, attempt: int, rank: int, *, lines: int = 400) -> str:
        """The end of a rank's log file; of its pod's log if the rank never came to write one."""
        text = tail(job.directory.files(attempt).log(rank), lines)
        return text or self._log(self._pod_name(job, attempt, rank // job.processes), lines=lines)

    def evidence(self, job: Job, attempt: int) -> Mapping[str, str]:
        """The job, its pods and their events as YAML, and the logs of the pods that have ended and of worker 0."""
        watched = self._watch(job, attempt)
        pods = watched.informer.pods
        name = pytorchjob.name_of(self._spec, job, attempt)
        names = [name, *(pod["metadata"]["name"] for pod in pods)]
        events = [{key: event.get(key) for key in KEPT} for item in names for event in self._kube.events(item)]
        found = {
            "job.yaml": yaml.safe_dump(_without_noise(watched.informer.job or {}), sort_keys=False),
            "pods.yaml": yaml.safe_dump_all([_without_noise(pod) for pod in pods], sort_keys=False),
            "events.yaml": yaml.safe_dump(events, sort_keys=False),
        }
        for pod in pods:
            if has_ended(pod) or index_of(pod) == 0:
                pod_name = pod["metadata"]["name"]
                found[f"{pod_name}.log"] = self._log(pod_name, lines=2000)
        return found

    def close(self) -> None:
        """Stop watching."""
        for watched in self._watched.values():
            watched.informer.stop()

    def _log(self, pod: str, *, lines: int) -> str:
        try:
            return self._kube.log(pod, lines=lines)
        except ClusterError as error:  # a log is worth having, and no reason to stop a recovery
            return f"(not read: {error})\n"

    def _watch(self, job: Job, attempt: int) -> _Watched:
        if attempt not in self._watched:
            self.close()  # of earlier attempts nothing is left
            name = pytorchjob.name_of(self._spec, job, attempt)
            informer = Informer(self._kube, name)
            informer.start()
            onlooker = Onlooker(name, self._spec.cluster.api_patience_s, self._spec.startup_s, self._notice)
            self._watched[attempt] = _Watched(informer, self._clock(), onlooker)
        return self._watched[attempt]

    def _introduce(self, name: str, job: Job) -> str:
        """What was made, and how a person can look at it with kubectl."""
        where = f"kubectl -n {self._kube.namespace}"
        return (
            f"PyTorchJob {self._kube.namespace}/{name}: {job.nodes} node(s) × {job.processes} process(es)\n"
            f"  {where} get pods -l training.kubeflow.org/job-name={name}\n"
            f"  {where} logs -f {name}-worker-0"
        )

    def _pod_name(self, job: Job, attempt: int, node: int) -> str:
        return f"{pytorchjob.name_of(self._spec, job, attempt)}-worker-{node}"

    def _require_ours(self, found: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        mine, other = manifest["metadata"]["annotations"], found["metadata"].get("annotations") or {}
        differing = [
            f"{key}: expected {mine[key]}, found {other.get(key)}"
            for key in (f"{LABEL}directory", f"{LABEL}spec-sha256")
            if other.get(key) != mine[key]
        ]
        if differing:
            raise ClusterError(
                f"PyTorchJob {self._kube.namespace}/{manifest['metadata']['name']} exists and is not this one "
                f"({'; '.join(differing)}): look at it with `kubectl -n {self._kube.namespace} get pytorchjob "
                f"{manifest['metadata']['name']} -o yaml`, delete it if nobody needs it, then `resume`"
            )

    def _require_api(self, watched: _Watched) -> None:
        patience_s = self._spec.cluster.api_patience_s
        watched.onlooker.hear(watched.informer.silent_s, watched.informer.error)
        if watched.informer.silent_s > patience_s:
            raise ClusterError(
                f"the Kubernetes API has been away for {watched.informer.silent_s:.0f} s (cluster.api_patience_s is "
                f"{patience_s:.0f}; {watched.informer.error}): the workers go on for cluster.lease_s, `resume` adopts them"
            )

    def _confirm_gone(self, watched: _Watched, job: Job, attempt: int) -> dict[str, Any] | None:
        """The watch may lag behind a job that was just made: ask."""
        now_s = self._clock()
        if now_s - watched.confirmed_s < CONFIRM_S:
            return None
        watched.confirmed_s = now_s
        found = self._kube.job(pytorchjob.name_of(self._spec, job, attempt))
        if found is not None:
            watched.informer.note(found)
        return found

    def _judge(
        self, watched: _Watched, job: Job, attempt: int, snapshot: JobSnapshot, found: Mapping[str, Any] | None
    ) -> JobSnapshot:
        """What only someone who watched for a while can know."""
        if snapshot.phase is Phase.GONE and watched.has_been:
            return JobSnapshot(Phase.GONE, (), Reason.CANCELLED, "", snapshot.remaining)
        if snapshot.phase is Phase.GONE and job.directory.files(attempt).nodes.is_dir():
            words = "the job was deleted while nobody watched it"
            return JobSnapshot(Phase.FAILED, (), Reason.PREEMPTED, words, snapshot.remaining)
        is_ignored = found is not None and not has_conditions(found) and not is_suspended(found)
        if is_ignored and self._clock() - watched.since_s > NOTICE_S and "FailedValidation" in watched.hint:
            return JobSnapshot(Phase.FAILED, (), Reason.CONFIG, watched.hint, snapshot.remaining)
        return snapshot

    def _notice_dead(self, watched: _Watched, pods: Sequence[Mapping[str, Any]]) -> None:
        """Pods on their way out whose node does not answer: nobody can say whether they still run, and waiting is in vain.

        What protects the checkpoints from them is that every writer has a directory of its own.
        """
        now_s = self._clock()
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if not pod["metadata"].get("deletionTimestamp") or uid in watched.dead:
                continue
            since_s = watched.leaving_s.setdefault(uid, now_s)
            reasons = {item.get("reason") for item in pod["status"].get("conditions") or []}
            grace_s = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
            if not reasons & GONE_WITH_NODE and now_s - since_s < grace_s + CONFIRM_S:
                continue
            if now_s - watched.node_asked_s < CONFIRM_S:
                continue
            watched.node_asked_s = now_s
            ready = self._kube.is_node_ready(str(pod["spec"].get("nodeName") or ""))
            if ready is False or (ready is None and reasons & GONE_WITH_NODE):
                watched.dead.add(uid)

    def _ask(
        self, watched: _Watched, job: Job, found: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]
    ) -> None:
        """Why pods do not come: only the events say (a quota, a validation). Asked seldom, and only then."""
        now_s = self._clock()
        waits = found is not None and len(pods) < job.nodes and not is_suspended(found)
        again_s = ASK_AGAIN_S if watched.hint or now_s - watched.since_s > NOTICE_S else ASK_SOON_S
        if not waits or now_s - watched.since_s < CONFIRM_S or now_s - watched.asked_s < again_s:
            return
        watched.asked_s = now_s
        name = str(found["metadata"]["name"]) if found else ""
        warnings = [event for event in self._kube.events(name) if event.get("type") == "Warning"]
        watched.hint = "; ".join(dict.fromkeys(f"{event['reason']}: {event['message']}" for event in warnings[-3:]))


def _without_noise(item: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in item.get("metadata", {}).items() if key != "managedFields"}
    return {**item, "metadata": metadata}
