"""Jobs as the cluster shows them to someone who sees no run directory: which ones a word means, and what is told of them.

Called by `look` and `act` with what the API answered. A run is found again by the labels and annotations of its
PyTorchJobs (`pytorchjob`), its progress by the events in worker 0's log (`events`).
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from steps.cli.view.run_folders import nearest
from steps.errors import ClusterError
from steps.flow.terminal import ProgressPrinter, seconds_in_words
from steps.job import progress as deadlines
from steps.job.classify import classify
from steps.job.goodput import Span, account
from steps.job.messages import describe_failure
from steps.job.snapshot import JobSnapshot, Phase
from steps.plain_text import counted
from steps.protocol.events import PREFIX, Event, parse_line
from steps.pytorchjob.manifest import AUTO_RESUME, LABEL, MANAGED_BY
from steps.pytorchjob.snapshot import View, index_of, snapshot_of_cluster

SELECTOR = f"{MANAGED_BY}=hyperpod-lora"
OTHER_RANK = re.compile(r"\[rank \d+\] ")
"""Before the lines of all but a node's first rank, as `log_forwarder` writes them."""
PACE_STEPS = 20
"""Steps whose mean tells the time left."""


@dataclass(frozen=True, slots=True)
class SeenJob:
    """One PyTorchJob of ours: one attempt."""

    name: str
    namespace: str
    run: str
    """`<flow>/<run id>`."""
    step: str
    attempt: int
    directory: str
    """Of the training, on the shared file system."""
    nodes: int
    processes: int
    created_s: float
    begun_s: float | None
    """When it left the queue."""
    ended_s: float | None
    snapshot: JobSnapshot
    is_leaving: bool
    """Its deletion was asked for."""
    pods: Mapping[int, str]
    """Phase of each pod, by its index."""
    grace_s: float

    @property
    def run_id(self) -> str:
        """Without the flow."""
        return self.run.rpartition("/")[2]

    @property
    def state(self) -> str:
        """In a word."""
        return "being deleted" if self.is_leaving else str(self.snapshot.phase)

    @property
    def is_over(self) -> bool:
        """No worker will make progress any more."""
        return self.is_leaving or self.snapshot.is_over

    def pod(self, rank: int) -> str:
        """The pod that a rank runs in."""
        return f"{self.name}-worker-{rank // self.processes}"

    def has_log(self, rank: int) -> bool:
        """Whether that pod has begun."""
        return self.pods.get(rank // self.processes, "Pending") != "Pending"


@dataclass(frozen=True, slots=True)
class Told:
    """What worker 0's log says."""

    progress: deadlines.Progress
    line: str
    """The last step, in words; empty before the first."""
    goodput: float | None
    """Of this attempt; None where its log does not reach back to its start."""


def see_all(
    jobs: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]], hints: Mapping[str, str]
) -> list[SeenJob]:
    """Every job with its pods, the newest last; `hints`: what the events say, by the job's name."""
    owned: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        owned.setdefault(pod["metadata"]["labels"].get("training.kubeflow.org/job-name", ""), []).append(pod)
    found = [see(job, owned.get(job["metadata"]["name"], []), hints.get(job["metadata"]["name"], "")) for job in jobs]
    return sorted(found, key=lambda job: (job.created_s, job.attempt))


def see(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], hint: str = "") -> SeenJob:
    """One job with its pods."""
    metadata, status = job["metadata"], job.get("status") or {}
    notes, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    nodes, processes = int(worker.get("replicas", 1)), int(job["spec"].get("nprocPerNode") or 1)
    recovery = "hyperpod" if AUTO_RESUME in notes else "client"
    snapshot = snapshot_of_cluster(View(job, tuple(pods), nodes, processes, hint=hint, recovery=recovery))
    return SeenJob(
        name=metadata["name"],
        namespace=metadata.get("namespace", ""),
        run=notes.get(f"{LABEL}run", labels.get(f"{LABEL}run", "")),
        step=labels.get(f"{LABEL}step", ""),
        attempt=int(labels.get(f"{LABEL}attempt", 0)),
        directory=notes.get(f"{LABEL}directory", ""),
        nodes=nodes,
        processes=processes,
        created_s=_seconds(metadata.get("creationTimestamp")) or 0.0,
        begun_s=_seconds(status.get("startTime")),
        ended_s=_seconds(status.get("completionTime")),
        snapshot=snapshot,
        is_leaving=bool(metadata.get("deletionTimestamp")),
        pods={index_of(pod): str(pod["status"].get("phase", "")) for pod in pods},
        grace_s=float(worker["template"]["spec"].get("terminationGracePeriodSeconds", 30)),
    )


def meant(seen: Sequence[SeenJob], given: str, *, namespace: str) -> list[SeenJob]:
    """The jobs that `given` names, the newest last: a run id, `Flow/run id`, a run's folder, or a PyTorchJob's name.

    Raises:
        ClusterError: the run id belongs to several flows.
    """
    folder = os.path.realpath(os.path.expanduser(given))
    found = [
        job
        for job in seen
        if given in (job.run, job.run_id, job.name) or os.path.realpath(os.path.dirname(job.directory)) == folder
    ]
    runs = sorted({job.run for job in found})
    if len(runs) > 1:
        raise ClusterError(f"run {given!r} is not the only one in namespace {namespace}: say {' or '.join(runs)}")
    return found


def choose(seen: Sequence[SeenJob], given: str, *, namespace: str) -> list[SeenJob]:
    """What is `meant`.

    Raises:
        ClusterError: there is none, or the run id belongs to several flows.
    """
    found = meant(seen, given, namespace=namespace)
    if not found:
        known = list(dict.fromkeys(name for job in seen for name in (job.run_id, job.name)))
        raise ClusterError(
            f"no PyTorchJob of run {given!r} in namespace {namespace}{nearest(given, known)}. A job that has ended is deleted "
            "with its pods (between two attempts there is none either): what became of the run stands in its directory, where "
            "storage.root is mounted, and in Metaflow"
        )
    return found


def by_training(seen: Iterable[SeenJob]) -> list[list[SeenJob]]:
    """Attempts of the same training together, the newest last; the training of the newest attempt last."""
    found: dict[tuple[str, str, str], list[SeenJob]] = {}
    for job in seen:
        found.setdefault((job.run, job.step, job.directory), []).append(job)
    return sorted(found.values(), key=lambda jobs: jobs[-1].created_s)


def listen(log: str, job: SeenJob, now_s: float) -> Told:
    """What the events in worker 0's log tell."""
    events = [event for line in log.splitlines() if line.startswith(PREFIX) and (event := parse_line(line))]
    progress = deadlines.begin(0.0)
    for event in events:
        progress = deadlines.advance(progress, event, 0.0)
    steps = [event for event in events if event.kind == "step"][-PACE_STEPS:]
    printer = ProgressPrinter(every_s=0.0)
    lines = [printer.line(event) for event in steps]
    return Told(progress, lines[-1] if lines else "", goodput_of(job, events, now_s))


def goodput_of(job: SeenJob, events: Sequence[Event], now_s: float) -> float | None:
    """The share of the attempt's time that went into steps; None if the events do not begin with its start."""
    if not events or events[0].kind != "started":
        return None
    ended_s = job.ended_s or now_s
    failed_s = ended_s if job.snapshot.phase is Phase.FAILED else None
    span = Span(job.attempt, job.created_s, max(ended_s, job.created_s), failed_s, job.begun_s, events)
    return float(account([span])["goodput"])


def describe(jobs: Sequence[SeenJob], told: Told | None, now_s: float) -> list[str]:
    """A training on the cluster in a few lines: its newest attempt whole, the ones before it in a line each."""
    job = jobs[-1]
    age_s = (job.ended_s or now_s) - job.created_s
    since = f"took {seconds_in_words(age_s)}" if job.ended_s else f"{seconds_in_words(age_s)} old"
    lines = [
        f"{job.run}, {job.step}: {job.state}, attempt {job.attempt}, "
        f"{counted(job.nodes, 'node')} × {counted(job.processes, 'process', 'processes')}, {since}",
        f"  job        {job.namespace}/{job.name}",
        *_work(job, told),
    ]
    if told and told.goodput is not None:
        lines.append(f"  goodput    {told.goodput:.0%} of this attempt")
    if job.snapshot.phase in (Phase.QUEUED, Phase.STARTING):
        lines.append(f"  waits      {job.snapshot.message or 'for its pods to start'}")
    if job.snapshot.phase is Phase.FAILED:
        progress = told.progress if told else deadlines.begin(0.0)
        lines.append(f"  failed     {describe_failure(classify(job.snapshot, (), progress))}")
    lines += [f"  attempt {before.attempt}  {before.state}" for before in jobs[:-1]]
    return [*lines, f"  directory  {job.directory}"]


def _work(job: SeenJob, told: Told | None) -> list[str]:
    """What the workers are at."""
    if told is None or (told.progress.started is None and not told.line):
        return []
    if job.is_over or told.progress.work is deadlines.Work.STEP:
        return [f"  progress   {told.line or f'step {told.progress.step}/{told.progress.of}'}"]
    beside = f" (last: {told.line})" if told.line else ""
    return [f"  progress   {told.progress.work}{beside}"]


def lines_of_rank(lines: Iterable[str], rank: int, processes: int) -> Iterable[str]:
    """One rank's lines of its pod's log: a node's first rank writes as it is, the others behind `[rank N] `."""
    head = f"[rank {rank}] "
    if rank % processes:
        return (line.removeprefix(head) for line in lines if line.startswith(head))
    return (line for line in lines if not OTHER_RANK.match(line))


def _seconds(text: Any) -> float | None:
    """Unix time of an RFC 3339 time stamp."""
    return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None
