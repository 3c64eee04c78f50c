"""What the cluster says, in the project's own words: a PyTorchJob and its pods → a `JobSnapshot`. Pure.

Sources: the operator's code at v1.7.0 for the conditions, the kubelet's and the scheduler's for the pods. The rules in order:

| seen | phase |
|---|---|
| no job | GONE |
| condition Succeeded | SUCCEEDED |
| condition Failed | FAILED; without a failed pod, one was deleted from outside |
| suspended, and it never ran | QUEUED |
| suspended after it ran | FAILED, preempted: the attempt ends, the next one waits in the queue |
| a pod ended badly, or can never start | FAILED: not waiting for an operator that may be away |
| a LimitRange or PodSecurity refuses the pods | FAILED, config, refused |
| every training container ended with 0 | SUCCEEDED: a sidecar that never ends is not waited for |
| every pod runs | RUNNING |
| anything else | STARTING, with what the platform says about it |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from steps.pytorchjob.pod_words import REFUSED, container_of, pending_class, words_of

INDEX = "training.kubeflow.org/replica-index"
GONE_WITH_NODE = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})
"""DisruptionTarget reasons of pods whose node does not answer."""


@dataclass(frozen=True, slots=True)
class View:
    """What was seen at one moment."""

    job: Mapping[str, Any] | None
    pods: tuple[Mapping[str, Any], ...]
    nodes: int
    processes: int
    dead_pods: frozenset[str] = frozenset()
    """UIDs of pods that cannot be asked any more, since their node does not answer."""
    hint: str = ""
    """What the events say about pods that do not come."""
    recovery: str = "client"
    pulls: Mapping[str, str] = field(default_factory=dict)
    """Why an image could not be pulled the last time, by the pod's UID."""


def snapshot_of_cluster(view: View) -> JobSnapshot:
    """The attempt, by the table above."""
    workers = tuple(sorted((_worker(pod, view) for pod in view.pods), key=lambda worker: worker.rank))
    remaining = _remaining(view)
    if view.job is None:
        return JobSnapshot(Phase.GONE, workers, remaining=remaining)
    succeeded, failed = _condition(view.job, "Succeeded"), _condition(view.job, "Failed")
    if _is_true(succeeded):
        return JobSnapshot(Phase.SUCCEEDED, workers, remaining=remaining)
    if _is_true(failed):
        return _failed(view, workers, remaining, str((failed or {}).get("message", "")))
    if is_suspended(view.job):
        return _suspended(view, workers, remaining)
    if view.recovery == "client" and any(_is_definite(pod, worker) for pod, worker in _pairs(view, workers)):
        return JobSnapshot(Phase.FAILED, workers, remaining=remaining)
    if len(workers) >= view.nodes and all(worker.exit_code == 0 for worker in workers):
        return JobSnapshot(Phase.SUCCEEDED, workers, remaining=remaining)
    if len(workers) >= view.nodes and all(_is_running(pod) for pod in view.pods):
        return JobSnapshot(Phase.RUNNING, workers, remaining=remaining)
    message = _why_pending(view)
    is_refused = bool(REFUSED.search(message))
    phase = Phase.FAILED if is_refused else Phase.STARTING
    return JobSnapshot(phase, workers, pending_class(message), message, remaining, is_refused=is_refused)


def is_suspended(job: Mapping[str, Any]) -> bool:
    """Kueue, or a person, holds it back."""
    policy = job.get("spec", {}).get("runPolicy") or {}
    return bool(policy.get("suspend")) or _is_true(_condition(job, "Suspended"))


def _suspended(view: View, workers: tuple[WorkerState, ...], remaining: int) -> JobSnapshot:
    # The operator writes Running=False when it suspends a job that ran, and no Running condition at all before.
    if view.job is not None and _condition(view.job, "Running"):
        words = "the queue suspended it: something of higher priority took its place"
        return JobSnapshot(Phase.FAILED, (), Reason.PREEMPTED, words, remaining)
    return JobSnapshot(Phase.QUEUED, workers, Reason.NONE, "suspended: waits to be admitted", remaining)


def _failed(view: View, workers: tuple[WorkerState, ...], remaining: int, message: str) -> JobSnapshot:
    """The operator counts a pod that somebody deletes as failed, and keeps those that really failed: none means deleted."""
    staying = [pod["metadata"]["name"] for pod in view.pods if not pod["metadata"].get("deletionTimestamp")]
    if len(staying) == view.nodes or any(worker.has_failed for worker in workers):
        return JobSnapshot(Phase.FAILED, workers, Reason.NONE, message, remaining)
    leaving = [pod["metadata"]["name"] for pod in view.pods if pod["metadata"]["name"] not in staying]
    who = f"{', '.join(leaving)} is going" if leaving else f"{view.nodes - len(staying)} of {view.nodes} pods are gone"
    words = f"{who}, and none failed; a node that was replaced looks the same"
    return JobSnapshot(Phase.FAILED, workers, Reason.RECREATED, words, remaining)


def _remaining(view: View) -> int:
    """Pods that could write, and the job while nobody has asked for its deletion."""
    alive = sum(pod["metadata"]["uid"] not in view.dead_pods for pod in view.pods)
    stays = view.job is not None and not view.job["metadata"].get("deletionTimestamp")
    return alive + stays


def _condition(job: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item["type"] == kind), None)


def _is_true(condition: Mapping[str, Any] | None) -> bool:
    return condition is not None and condition["status"] == "True"


def has_conditions(job: Mapping[str, Any]) -> bool:
    """The operator has taken notice of it."""
    return bool((job.get("status") or {}).get("conditions"))


def _pairs(view: View, workers: tuple[WorkerState, ...]) -> list[tuple[Mapping[str, Any], WorkerState]]:
    by_rank = {index_of(pod) * view.processes: pod for pod in view.pods}
    return [(by_rank[worker.rank], worker) for worker in workers]


def index_of(pod: Mapping[str, Any]) -> int:
    """Which node of the job a pod is."""
    return int(pod["metadata"].get("labels", {}).get(INDEX, 0))


def has_ended(pod: Mapping[str, Any]) -> bool:
    """Its worker runs no more; the pod's own phase follows a second or two later."""
    return pod["status"].get("phase") == "Failed" or "terminated" in (container_of(pod).get("state") or {})


def _is_running(pod: Mapping[str, Any]) -> bool:
    return pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def _worker(pod: Mapping[str, Any], view: View) -> WorkerState:
    state = container_of(pod).get("state") or {}
    ended = state.get("terminated") or {}
    words = words_of(pod, view.pulls.get(pod["metadata"]["uid"], ""))
    return WorkerState(
        rank=index_of(pod) * view.processes,
        name=pod["metadata"]["name"],
        node=str(pod["spec"].get("nodeName") or ""),
        exit_code=ended.get("exitCode"),
        reason=words.reason,
        message=words.message,
        started_s=_seconds((state.get("running") or ended).get("startedAt")),
        finished_s=_seconds(ended.get("finishedAt")),
        ranks=view.processes,
        may_pass=words.may_pass,
    )


def _is_definite(pod: Mapping[str, Any], worker: WorkerState) -> bool:
    """This pod ends the attempt: it failed, it is going away, or it can never start. What may pass is left to the deadline."""
    return worker.has_failed or pod["status"].get("phase") == "Failed"


def _why_pending(view: View) -> str:
    """What the platform says about the pods that do not run; empty if it says nothing."""
    said = [
        worker.message for worker in (_worker(pod, view) for pod in view.pods if not _is_running(pod)) if worker.message
    ]
    missing = view.nodes - len(view.pods)
    if missing > 0 and view.hint:
        said.append(view.hint)
    return "; ".join(dict.fromkeys(said))[:600]


def _seconds(text: Any) -> float | None:
    """Unix time of an RFC 3339 time stamp."""
    return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None
