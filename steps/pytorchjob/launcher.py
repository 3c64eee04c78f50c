"""The cluster's launcher: an attempt is one PyTorchJob. Satisfies `job.snapshot.Launcher`; the client is handed in.

It keeps nothing but what the watch shows: names are deterministic, so another launcher, in another process, finds the same job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import yaml

from steps.errors import ClusterError
from steps.job.job import Job
from steps.job.local_launcher import tail
from steps.job.snapshot import JobSnapshot, Phase
from steps.plain_text import command, counted
from steps.protocol.rundir import write_json
from steps.pytorchjob import manifest as pytorchjob
from steps.pytorchjob.exit_reports import read_reports, with_reports
from steps.pytorchjob.informer import Informer
from steps.pytorchjob.manifest import LABEL
from steps.pytorchjob.node_marks import is_unexplained, mark_of, with_marks
from steps.pytorchjob.onlooker import Onlooker
from steps.pytorchjob.pod_template import Shunned
from steps.pytorchjob.snapshot import (
    View,
    has_ended,
    index_of,
    snapshot_of_cluster,
)
from steps.pytorchjob.spec import JobSpec
from steps.pytorchjob.watching import CONFIRM_S, Ask, Look, Question, Seen, advance, judge

if TYPE_CHECKING:
    from steps.pytorchjob.client import Kube

KEPT = ("involvedObject", "reason", "message", "type", "count", "lastTimestamp")


@dataclass(slots=True)
class _Watched:
    """What this process knows of one attempt."""

    informer: Informer
    onlooker: Onlooker
    seen: Seen
    has_looked_again: bool = False
    """After the job's failure, which may be told of before its pods'."""
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

    def create(
        self, job: Job, attempt: int, *, avoid_nodes: Sequence[str] = (), exclude_nodes: Sequence[str] = ()
    ) -> None:
        """Create the attempt's PyTorchJob; one that is there already is adopted if it is the same.

        Raises:
            ClusterError: refused, the API is away, or the name belongs to something else.
        """
        watched = self._watch(job, attempt)  # first: without the right to look, nothing is made
        manifest = pytorchjob.build(self._spec, job, attempt, shunned=Shunned(avoid_nodes, exclude_nodes))
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
        look = self._look(watched, job, attempt)
        watched.seen, questions = advance(watched.seen, look)
        for question in questions:
            self._ask(watched, question)
        age_s = look.now_s - watched.seen.since_s
        watched.onlooker.look(look.job, look.pods, age_s, hint=watched.seen.hint)
        snapshot = self._snapshot(watched, job, look.job)
        if snapshot.phase is Phase.FAILED and not watched.has_looked_again:
            watched.has_looked_again = True
            watched.informer.look_again()
            snapshot = self._snapshot(watched, job, look.job)
        if snapshot.names_another:
            reports = read_reports(job.directory.attempt(attempt), job.nodes)
            snapshot = with_reports(snapshot, reports, job.processes)
        if snapshot.phase is Phase.FAILED:
            nodes = {worker.node for worker in snapshot.workers if is_unexplained(worker)}
            watched.marks |= {node: mark_of(self._kube.node(node) or {}) for node in nodes - watched.marks.keys()}
        was_begun = snapshot.phase is Phase.GONE and job.directory.files(attempt).nodes.is_dir()
        judged = judge(watched.seen, look, with_marks(snapshot, watched.marks), was_begun=was_begun)
        return replace(judged, silent_s=watched.informer.silent_s)

    def _look(self, watched: _Watched, job: Job, attempt: int) -> Look:
        """What the watch shows; a job that it does not show is asked for."""
        now_s, found = self._clock(), watched.informer.job
        if found is None and watched.seen.is_due(Ask.JOB, CONFIRM_S, now_s):
            watched.seen = watched.seen.asked(Ask.JOB, now_s)
            found = self._kube.job(pytorchjob.name_of(self._spec, job, attempt))
            if found is not None:
                watched.informer.note(found)
        return Look(now_s, found, watched.informer.pods, job.nodes)

    def _ask(self, watched: _Watched, question: Question) -> None:
        """Put a question to the API, and take its answer in."""
        if question.ask is Ask.NODE:
            watched.seen = watched.seen.with_node(question, self._kube.is_node_ready(question.name))
        elif question.ask is Ask.PULL:
            watched.seen = watched.seen.with_pull(question, self._kube.events(question.name))
        else:
            watched.seen = watched.seen.with_warnings(self._kube.events(question.name))

    def _snapshot(self, watched: _Watched, job: Job, found: Mapping[str, Any] | None) -> JobSnapshot:
        pods, recovery, seen = watched.informer.pods, self._spec.cluster.recovery, watched.seen
        return snapshot_of_cluster(
            View(found, pods, job.nodes, job.processes, seen.dead, seen.hint, recovery, seen.pulls)
        )

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
            onlooker = Onlooker(name, self._spec.cluster.api_patience_s, self._spec.startup_s, self._notice, job.nodes)
            self._watched[attempt] = _Watched(informer, onlooker, Seen(self._clock()))
        return self._watched[attempt]

    def _introduce(self, name: str, job: Job) -> str:
        """What was made, and how a person can look at it with kubectl."""
        where = f"kubectl -n {self._kube.namespace}"
        size = f"{counted(job.nodes, 'node')} × {counted(job.processes, 'process', 'processes')}"
        return (
            f"PyTorchJob {self._kube.namespace}/{name}: {size}\n"
            f"  {where} get pods -l training.kubeflow.org/job-name={name}\n"
            f"  {where} logs -f {name}-worker-0"
        )

    def _pod_name(self, job: Job, attempt: int, node: int) -> str:
        return f"{pytorchjob.name_of(self._spec, job, attempt)}-worker-{node}"

    @property
    def _resume(self) -> str:
        """The command that goes on with this run."""
        return command("resume", self._spec.run.rpartition("/")[2])

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
                f"{manifest['metadata']['name']} -o yaml`, delete it if nobody needs it, then `{self._resume}`"
            )

    def _require_api(self, watched: _Watched) -> None:
        patience_s = self._spec.cluster.api_patience_s
        watched.onlooker.hear(watched.informer.silent_s, watched.informer.error)
        if watched.informer.silent_s > patience_s:
            raise ClusterError(
                f"the Kubernetes API has been away for {watched.informer.silent_s:.0f} s (cluster.api_patience_s is "
                f"{patience_s:.0f}; {watched.informer.error}): the workers go on for cluster.lease_s, "
                f"`{self._resume}` adopts them"
            )


def _without_noise(item: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in item.get("metadata", {}).items() if key != "managedFields"}
    return {**item, "metadata": metadata}
