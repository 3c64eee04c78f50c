"""What happened: `classify` turns an attempt's remains into one `Failure`. What to do about it is `retry.decide`'s question.

Pure. The first failing worker speaks, not its victims: a worker's own record beats its exit code, an exit code beats a signal,
and a lost connection is believed only when nobody else has a better explanation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from steps.job.progress import Passed, Progress, Work
from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState, signal_name
from steps.protocol.failure_class import CLASS_OF_EXIT, FailureClass
from steps.protocol.failure_record import FailureRecord

TRACEBACK_LINES = 12
"""Last lines of a worker's traceback that a message quotes."""
SAYS_NOTHING = (Reason.NONE, Reason.PEER)
"""A worker with these was a victim, or nobody knows."""
SIGTERM = 15
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Told:
    """What a platform's reason means."""

    failure_class: FailureClass
    words: str
    is_of_the_job: bool = False
    """The job as a whole was ended from outside: how each worker went then says nothing."""


TOLD: dict[Reason, Told] = {
    Reason.OUT_OF_MEMORY: Told(FailureClass.OUT_OF_MEMORY, "the platform killed it: out of memory"),
    Reason.IMAGE: Told(FailureClass.IMAGE, "its image cannot be pulled"),
    Reason.CONFIG: Told(FailureClass.CONFIG, "its container cannot be created"),
    Reason.PREEMPTED: Told(FailureClass.PREEMPTED, "the platform took its place away", is_of_the_job=True),
    Reason.NODE: Told(FailureClass.NODE, "its node failed"),
    Reason.STOPPED: Told(FailureClass.PREEMPTED, "it was asked to stop", is_of_the_job=True),
    Reason.LEASE: Told(
        FailureClass.PREEMPTED, "no supervisor watched over it any more, so it was ended", is_of_the_job=True
    ),
    Reason.AGENT: Told(FailureClass.UNKNOWN, "the process that watched over the workers was killed"),
    Reason.CANCELLED: Told(FailureClass.PREEMPTED, "somebody cancelled or deleted it", is_of_the_job=True),
    Reason.RECREATED: Told(FailureClass.PREEMPTED, "its pod was deleted from outside"),
    Reason.PEER: Told(
        FailureClass.UNKNOWN, "its ranks were stopped since another node's failed first, and that node left no word"
    ),
    Reason.INIT: Told(FailureClass.UNKNOWN, "a container that runs before it has failed"),
    Reason.OWN_STORAGE: Told(FailureClass.STORAGE, "it wrote more to its node than it may"),
    Reason.UNSCHEDULABLE: Told(FailureClass.NODE, "no node has room for it"),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended."""

    failure_class: FailureClass
    message: str
    rank: int | None = None
    node: str = ""
    """Empty where nodes cannot be chosen."""
    step: int | None = None
    """Steps done; None if training had not begun."""
    traceback: tuple[str, ...] = ()
    """The worker's own last lines."""
    is_at_start: bool = False
    """Its workers have not all started (in time)."""
    lacks_room: bool = False
    """They waited for nodes in vain."""

    @property
    def is_permanent(self) -> bool:
        """Trying again gives the same."""
        return self.failure_class.meaning.is_permanent


def classify(
    snapshot: JobSnapshot, records: Sequence[FailureRecord], progress: Progress, passed: Passed | None = None
) -> Failure:
    """The failure of an attempt that ended without a result, or that `passed` a deadline.

    `records` are the workers' own, the earliest first.
    """
    step = progress.step if progress.has_trained else None
    cause = _first(record for record in records if not record.is_symptom)
    is_late = passed is not None and passed.work is Work.STARTUP
    by_platform = _first(item for item in _ended(snapshot, is_late=is_late) if item.reason not in SAYS_NOTHING)
    killed = _first(worker for worker in _ended(snapshot) if _died_by_signal(worker))
    coded = _first(worker for worker in _ended(snapshot) if worker.exit_code in CLASS_OF_EXIT and not _stopped(worker))
    symptom = _first(record for record in records if record.failure_class != FailureClass.PREEMPTED)
    if cause:
        return _of_record(cause, snapshot, step)
    is_told = by_platform is not None or snapshot.reason is not Reason.NONE
    if passed and not (is_told and is_late):
        return _of_deadline(passed, step, snapshot.message)
    if passed:
        return _of_late_start(by_platform, snapshot, passed, step)
    if by_platform:
        return _of_reason(by_platform.reason, by_platform, by_platform.message, step)
    if snapshot.reason in TOLD and TOLD[snapshot.reason].is_of_the_job:
        return _of_reason(snapshot.reason, None, snapshot.message, step)
    if killed:
        return _of_signal(killed, snapshot, step)
    if symptom:
        return _of_record(symptom, snapshot, step)
    if coded and coded.exit_code is not None:
        message = f"rank {coded.rank} exited with code {coded.exit_code}{_said(coded)}"
        return Failure(CLASS_OF_EXIT[coded.exit_code], message, coded.rank, coded.node, step)
    return _of_the_whole(snapshot, progress, step)


def of_hardware(rank: int, words: str, snapshot: JobSnapshot, instead_of: Failure) -> Failure:
    """The failure of a rank whose log names broken hardware, in the place of what it had looked like."""
    message = f"rank {rank}: {words}; it looked like {instead_of.failure_class}: {instead_of.message}"
    return Failure(FailureClass.ACCELERATOR, message, rank, _node_of(rank, snapshot), instead_of.step)


def _of_the_whole(snapshot: JobSnapshot, progress: Progress, step: int | None) -> Failure:
    """No worker stands out: look at the job itself."""
    if snapshot.reason is not Reason.NONE:
        return _of_reason(snapshot.reason, None, snapshot.message, step)
    if snapshot.phase is Phase.SUCCEEDED:
        what = (
            "but its result is not whole" if progress.finished else "without a result: no `finished` event was written"
        )
        return Failure(FailureClass.UNKNOWN, f"every worker exited with 0, {what}", step=step)
    if snapshot.phase is Phase.GONE:
        return Failure(FailureClass.UNKNOWN, "the job vanished: somebody deleted it", step=step)
    if snapshot.names_another:
        victim = next(worker for worker in snapshot.workers if worker.reason is Reason.PEER)
        return replace(_of_reason(Reason.PEER, victim, "", step), node="")
    stopped = _first(worker for worker in snapshot.workers if _stopped(worker))
    if stopped or progress.stopping:
        why = progress.stopping or "a signal asked it to stop"
        rank = stopped.rank if stopped else None
        return Failure(FailureClass.PREEMPTED, f"the workers were stopped: {why}", rank, step=step)
    worker = _first(_ended(snapshot))
    if worker:
        message = f"rank {worker.rank} exited with code {worker.exit_code} and left no failure record{_said(worker)}"
        return Failure(FailureClass.UNKNOWN, message, worker.rank, worker.node, step)
    return Failure(FailureClass.UNKNOWN, snapshot.message or "the workers ended, nobody knows how", step=step)


def _of_record(record: FailureRecord, snapshot: JobSnapshot, step: int | None) -> Failure:
    return Failure(
        FailureClass(record.failure_class),
        f"{record.exception}: {record.message}" if record.exception not in record.message else record.message,
        record.rank,
        _node_of(record.rank, snapshot),
        max(record.step, step or 0) if record.step or step else None,
        tuple(record.traceback.strip().splitlines()[-TRACEBACK_LINES:]),
    )


def _node_of(rank: int, snapshot: JobSnapshot) -> str:
    return _first(worker.node for worker in snapshot.workers if worker.holds(rank)) or ""


def _of_deadline(passed: Passed, step: int | None, hint: str) -> Failure:
    words = f"nothing was heard for {passed.waited_s:.0f} s during {passed.work}; the limit is {passed.limit_s:.0f} s"
    words += f" ({hint})" if hint else ""
    is_at_start = passed.work in (Work.QUEUE, Work.STARTUP)
    return Failure(
        passed.failure_class, words, step=step, is_at_start=is_at_start, lacks_room=passed.work is Work.QUEUE
    )


def _of_late_start(worker: WorkerState | None, snapshot: JobSnapshot, passed: Passed, step: int | None) -> Failure:
    """What kept the workers from starting until the deadline is believed now."""
    reason, said = (worker.reason, worker.message) if worker else (snapshot.reason, snapshot.message)
    which = f"without {', '.join(passed.without)}, which is left out" if passed.without else "deadlines.startup_s"
    waited = f"waited for {passed.waited_s:.0f} s ({which})"
    failure = _of_reason(reason, worker, f"{said}; {waited}" if said else waited, step)
    return replace(failure, is_at_start=True, lacks_room=snapshot.lacks_room)


def _of_reason(reason: Reason, worker: WorkerState | None, message: str, step: int | None) -> Failure:
    who = f"rank {worker.rank}{f' ({worker.name})' if worker.name else ''}" if worker else "the job"
    words = f"{who}: {TOLD[reason].words}{f' ({message})' if message else ''}"
    rank, node = (worker.rank, worker.node) if worker else (None, "")
    kind = TOLD[reason].failure_class
    # What a platform says of these classes keeps a worker from starting; what a worker says itself is in its record.
    return Failure(kind, words, rank, node, step, is_at_start=kind.meaning.is_permanent)


def _of_signal(worker: WorkerState, snapshot: JobSnapshot, step: int | None) -> Failure:
    """SIGKILL alone says nothing: out of memory only if the platform counted a kill."""
    name = signal_name(worker.signal or 0)
    who = f"rank {worker.rank}{f' ({worker.name})' if worker.name else ''}"
    if snapshot.reason is Reason.OUT_OF_MEMORY:
        return Failure(
            FailureClass.OUT_OF_MEMORY, f"{who}: {TOLD[snapshot.reason].words}", worker.rank, worker.node, step
        )
    return Failure(FailureClass.UNKNOWN, f"{who} was killed by {name}", worker.rank, worker.node, step)


def _said(worker: WorkerState) -> str:
    """The last line of what its platform kept of it."""
    lines = worker.message.strip().splitlines()
    return f": {lines[-1][:400]}" if lines else ""


def _died_by_signal(worker: WorkerState) -> bool:
    return worker.signal not in (None, SIGTERM)


def _stopped(worker: WorkerState) -> bool:
    return worker.signal == SIGTERM


def _ended(snapshot: JobSnapshot, *, is_late: bool = False) -> list[WorkerState]:
    """Failed workers, the first to end first, those of unknown time last; `is_late`: also what might have come to start."""
    failed = [worker for worker in snapshot.workers if worker.has_failed or (is_late and worker.may_pass)]
    return sorted(failed, key=lambda worker: worker.finished_s if worker.finished_s is not None else float("inf"))


def _first(items: Iterable[T]) -> T | None:
    return next(iter(items), None)
