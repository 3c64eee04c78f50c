"""What a launcher saw, in the project's own words: a `JobSnapshot`, the tables that translate foreign phases, and `Launcher`.

The launchers build snapshots, the supervisor reads them. Pure: no process or cluster is looked at here.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol

from steps.job.job import Job


class Phase(StrEnum):
    """Where an attempt is."""

    QUEUED = "queued"
    """Accepted, waits for capacity."""
    STARTING = "starting"
    """Some workers do not run yet."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """Every worker exited with 0; whether the result is there is another question."""
    FAILED = "failed"
    GONE = "gone"
    """Never created, or deleted."""


class Reason(StrEnum):
    """Why the platform ended or did not start a worker."""

    NONE = ""
    OUT_OF_MEMORY = "out_of_memory"
    IMAGE = "image"
    CONFIG = "config"
    PREEMPTED = "preempted"
    NODE = "node"
    STOPPED = "stopped"
    """Ended on request."""
    LEASE = "lease"
    """Ended because no supervisor had watched it for the length of its lease."""
    AGENT = "keeper"
    """The process that watched over the workers is gone, and did not say how they ended."""
    CANCELLED = "cancelled"
    """A person asked that it ends: deleted the job while we watched it, or said so (`hyperpod-lora cancel`)."""
    RECREATED = "recreated"
    """Somebody deleted a pod; the operator made it anew, and it can never join its peers."""
    PEER = "peer"
    """Stopped because another node's workers failed first."""
    INIT = "init"
    """A container that has to end before the worker's begins has failed."""
    OWN_STORAGE = "own_storage"
    """The node ended it for what it wrote itself."""
    UNSCHEDULABLE = "unschedulable"
    """No node has room for it."""


REASONS: dict[str, Reason] = {
    # Containers that ended (state.terminated.reason).
    "OOMKilled": Reason.OUT_OF_MEMORY,
    "ContainerStatusUnknown": Reason.NODE,  # the kubelet lost it: the node went away
    # Containers that wait (state.waiting.reason).
    "ErrImagePull": Reason.IMAGE,
    "ImagePullBackOff": Reason.IMAGE,
    "InvalidImageName": Reason.IMAGE,
    "ErrImageNeverPull": Reason.IMAGE,
    "CreateContainerConfigError": Reason.CONFIG,  # a secret or config map that is not there
    "CreateContainerError": Reason.CONFIG,
    "RunContainerError": Reason.CONFIG,
    "Unschedulable": Reason.UNSCHEDULABLE,  # the PodScheduled condition's reason
    # Pods (status.reason).
    "Evicted": Reason.NODE,  # disk or memory pressure on the node
    "NodeLost": Reason.NODE,
    "NodeShutdown": Reason.NODE,
    "Terminated": Reason.NODE,  # graceful node shutdown
    "UnexpectedAdmissionError": Reason.NODE,  # the kubelet refused it: devices vanished
    "DeadlineExceeded": Reason.STOPPED,  # activeDeadlineSeconds: `deadlines.total_s` passed while nobody watched
    "Preempting": Reason.PREEMPTED,
    # Pods (the DisruptionTarget condition's reason).
    "PreemptionByScheduler": Reason.PREEMPTED,
    "EvictionByEvictionAPI": Reason.PREEMPTED,  # a drain
    "DeletionByTaintManager": Reason.NODE,
    "DeletionByPodGC": Reason.NODE,
    "TerminationByKubelet": Reason.NODE,
    # The agent on this machine.
    "oom_kill": Reason.OUT_OF_MEMORY,  # the cgroup's counter rose
    "stopped": Reason.STOPPED,
    "cancelled": Reason.CANCELLED,
    "lease": Reason.LEASE,
    "reboot": Reason.NODE,
    "keeper": Reason.AGENT,
    "peer": Reason.PEER,
    "recreated": Reason.RECREATED,  # `pod_main`, in a termination message
}


def reason_of(word: str | None) -> Reason:
    """The platform's word, translated; NONE for `Error`, `Completed` and words nobody knows."""
    return REASONS.get(word or "", Reason.NONE)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One rank (or, on a cluster, one pod)."""

    rank: int
    """The first one, of a pod."""
    name: str = ""
    """Pod name, or `pid 123`."""
    node: str = ""
    """Empty where nodes cannot be chosen (local)."""
    exit_code: int | None = None
    """None while it runs, or when nobody knows. Negative: ended by that signal."""
    reason: Reason = Reason.NONE
    message: str = ""
    started_s: float | None = None
    finished_s: float | None = None
    """Unix times, on the platform's clock."""
    ranks: int = 1
    """How many ranks it holds."""
    may_pass: bool = False
    """`reason` only keeps it from starting, and may go away by itself."""

    @property
    def signal(self) -> int | None:
        """The signal that ended it, whether told as -9 or as 137."""
        if self.exit_code is None:
            return None
        number = -self.exit_code if self.exit_code < 0 else self.exit_code - 128
        return number if 0 < number < 65 else None

    @property
    def has_failed(self) -> bool:
        """It ended, and not well."""
        return self.exit_code not in (None, 0) or (self.reason is not Reason.NONE and not self.may_pass)

    @property
    def was_stopped(self) -> bool:
        """By SIGTERM, and nobody says why."""
        return self.signal == signal.SIGTERM and self.reason is Reason.NONE

    def holds(self, rank: int) -> bool:
        """Whether a rank is one of its own."""
        return self.rank <= rank < self.rank + self.ranks


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """An attempt as its launcher saw it at one moment."""

    phase: Phase
    workers: tuple[WorkerState, ...] = ()
    reason: Reason = Reason.NONE
    """Why the job as a whole ended."""
    message: str = ""
    remaining: int = 0
    """Processes or pods that could still write, and the job itself."""
    silent_s: float = 0.0
    """For how long the platform could not be asked: it may be different by now."""
    is_refused: bool = False
    """A rule of the platform refuses its workers: it failed, unless somebody changes that rule."""

    @property
    def is_over(self) -> bool:
        """No worker will make progress any more."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.GONE)

    @property
    def lacks_room(self) -> bool:
        """A worker waits for a node that could take it."""
        return any(worker.reason is Reason.UNSCHEDULABLE for worker in self.workers)

    @property
    def names_another(self) -> bool:
        """All that ended so far say that another node's workers failed first: it has yet to tell how."""
        failed = [worker for worker in self.workers if worker.has_failed]
        return any(worker.reason is Reason.PEER for worker in failed) and all(
            worker.reason is Reason.PEER or worker.was_stopped for worker in failed
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the evidence."""
        return asdict(self)


class Launcher(Protocol):
    """What the supervisor asks of a launcher; `LocalLauncher` and `KubeLauncher` satisfy it. No method waits for a worker."""

    def create(
        self, job: Job, attempt: int, *, avoid_nodes: Sequence[str] = (), exclude_nodes: Sequence[str] = ()
    ) -> None:
        """Start an attempt; nothing happens if it runs already.

        `avoid_nodes` are used where nothing else has room, `exclude_nodes` not at all.

        Raises:
            StorageError, ClusterError: it cannot be started.
        """

    def read(self, job: Job, attempt: int) -> JobSnapshot:
        """How the attempt is."""
        ...

    def delete(self, job: Job, attempt: int, *, grace_s: float) -> None:
        """Ask that its workers save and stop, and that what is left after `grace_s` is killed; 0 kills at once."""

    def logs(self, job: Job, attempt: int, rank: int, *, lines: int = 400) -> str:
        """The end of a rank's log; empty if there is none."""
        ...

    def evidence(self, job: Job, attempt: int) -> Mapping[str, str]:
        """What only this platform knows about an attempt, as file name → text."""
        ...


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 64` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def snapshot_of_local(raw: Mapping[str, Any]) -> JobSnapshot:
    """Translate what the local launcher found.

    `created`: the attempt was begun · `agent_alive` · `rebooted`: the machine has been restarted since ·
    `exit`: the agent's exit.json or None · `pids`: of the ranks by rank · `remaining`: processes left · `processes`: expected.
    """
    remaining, ended = int(raw["remaining"]), raw.get("exit")
    pids = {int(rank): int(pid) for rank, pid in raw.get("pids", {}).items()}
    if not raw["created"]:
        return JobSnapshot(Phase.GONE, remaining=remaining)
    if ended:
        code = int(ended["exit_code"])
        workers = tuple(_ended_worker(int(rank), item, pids) for rank, item in sorted(ended.get("ranks", {}).items()))
        phase = Phase.SUCCEEDED if code == 0 else Phase.FAILED
        reason = reason_of(ended.get("reason"))
        return JobSnapshot(phase, workers, reason, str(ended.get("message", "")), remaining)
    running = tuple(WorkerState(rank, f"pid {pid}") for rank, pid in sorted(pids.items()))
    if raw["rebooted"]:
        return JobSnapshot(Phase.FAILED, running, Reason.NODE, "the machine was restarted", remaining)
    if not raw["agent_alive"]:
        return JobSnapshot(Phase.FAILED, running, Reason.AGENT, "the agent process ended without a word", remaining)
    phase = Phase.RUNNING if len(pids) >= int(raw["processes"]) else Phase.STARTING
    return JobSnapshot(phase, running, remaining=remaining)


def _ended_worker(rank: int, item: Mapping[str, Any], pids: Mapping[int, int]) -> WorkerState:
    name = f"pid {pids[rank]}" if rank in pids else ""
    return WorkerState(
        rank, name, "", item.get("exit_code"), reason_of(item.get("reason")), finished_s=item.get("finished_s")
    )
