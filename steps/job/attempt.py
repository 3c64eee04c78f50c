"""One attempt, watched from its beginning until nothing of it is left. Used by `supervise`; it knows no history and no retry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from steps.errors import JobTimeout
from steps.job import cancel
from steps.job import progress as deadlines
from steps.job.agent.runtime_log import find_broken_hardware
from steps.job.classify import Failure, classify, of_hardware
from steps.job.evidence import collect_stacks, save_evidence
from steps.job.job import Job
from steps.job.lease import Lease
from steps.job.progress import Passed, Progress, Work
from steps.job.result import result_damage
from steps.job.snapshot import JobSnapshot, Launcher, Reason
from steps.protocol.events import Event, EventTail
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import read_records
from steps.settings.config import Deadlines

POLL_S = 0.5
QUICK_POLL_S = 0.1
"""Between two looks while workers start or leave: then a second matters to a person who waits."""
PEER_WORD_S = 30.0
"""An ending that names another node's failure waits so long for that node's own word, before it is judged."""
HANG_GRACE_S = 5.0
"""For workers that missed a deadline: they have nothing to save, or cannot."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the watching of an attempt ended."""

    snapshot: JobSnapshot
    progress: Progress
    begun_s: float
    """Clock time when the watching began."""
    passed: Passed | None = None
    is_out_of_time: bool = False
    """The total deadline has passed."""

    @property
    def started_nodes(self) -> int | None:
        """How many nodes had started when the startup deadline passed; None if it was kept."""
        if self.passed is None or self.passed.work is not Work.STARTUP:
            return None
        return sum(worker.started_s is not None for worker in self.snapshot.workers)

    @property
    def ready_s(self) -> float | None:
        """Seconds until its first training step was seen."""
        trained_at_s = self.progress.trained_at_s
        return None if trained_at_s is None else trained_at_s - self.begun_s

    @property
    def failed_s(self) -> float | None:
        """Unix time when the first worker failed, if known."""
        return min(
            (worker.finished_s for worker in self.snapshot.workers if worker.finished_s and worker.has_failed),
            default=None,
        )


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks at attempts of a job through a launcher."""

    job: Job
    launcher: Launcher
    limits: Deadlines
    lease: Lease
    observe: Callable[[Event], None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def until_end(self, number: int, *, out_of_time_s: float, on_admitted: Callable[[], None]) -> Ending:
        """Look until the attempt is over or a deadline has passed; `out_of_time_s`: clock time of the total deadline."""
        tail = EventTail(self.job.directory.events(number))
        begun_s = self.clock()
        progress = deadlines.begin(begun_s)
        over_s: float | None = None
        while True:
            snapshot = self.launcher.read(self.job, number)
            now_s = self.clock()
            for event in tail.read_new():
                progress = deadlines.advance(progress, event, now_s)
                self.observe(event)
            over_s = (now_s if over_s is None else over_s) if snapshot.is_over else None
            if over_s is not None and not (now_s - over_s < PEER_WORD_S and self._awaits_word(number, snapshot)):
                return Ending(snapshot, progress, begun_s)
            if cancel.is_requested(self.job.directory):
                return Ending(replace(snapshot, reason=Reason.CANCELLED), progress, begun_s)
            before, progress = progress, deadlines.observe_phase(progress, snapshot.phase, now_s)
            if before.work is Work.QUEUE and progress.work is not Work.QUEUE:
                on_admitted()
            self.lease.advance(number)
            passed = deadlines.passed_deadline(progress, self.limits, now_s)
            if passed or now_s > out_of_time_s:
                return Ending(snapshot, progress, begun_s, passed, now_s > out_of_time_s)
            self.sleep(QUICK_POLL_S if progress.work in (Work.STARTUP, Work.EXIT) else POLL_S)

    def _awaits_word(self, number: int, snapshot: JobSnapshot) -> bool:
        """Only victims have spoken so far."""
        records = read_records(self.job.directory.attempt(number)) if snapshot.names_another else []
        return snapshot.names_another and all(record.is_symptom for record in records)

    def conclude(self, number: int, ending: Ending) -> Failure | None:
        """Evidence first, then the attempt is deleted, until nothing of it is left. None: it brought a whole result.

        Raises:
            JobTimeout: something of it is left, even after it was killed.
            StorageError: the evidence cannot be written.
        """
        failure = self._failure(number, ending)
        if failure:
            save_evidence(self.job, number, ending.snapshot, failure, self.launcher)
        self.clear(number, grace_s=HANG_GRACE_S if ending.passed else self.limits.grace_s)
        return failure

    def _failure(self, number: int, ending: Ending) -> Failure | None:
        finished, step = ending.progress.finished, ending.progress.step
        damage = result_damage(self.job.directory, finished) if finished else None
        if finished and damage is None:
            return None
        if damage:
            return Failure(FailureClass.STORAGE, f"the result is not whole: {damage}", step=step)
        if ending.is_out_of_time:
            return Failure(FailureClass.PREEMPTED, "the total deadline (deadlines.total_s) has passed", step=step)
        if ending.passed:
            collect_stacks(self.job, number, sleep=self.sleep)
        folder = self.job.directory.attempt(number)
        failure = classify(ending.snapshot, read_records(folder), ending.progress, ending.passed)
        broken = find_broken_hardware(folder) if failure.failure_class.meaning.hides_hardware else None
        return of_hardware(*broken, ending.snapshot, failure) if broken else failure

    def clear(self, number: int, *, grace_s: float) -> None:
        """Delete the attempt and wait until nothing of it is left: a late writer is harmless, but it holds the machine.

        Raises:
            JobTimeout: something is left, even after it was killed.
        """
        for patience_s in (grace_s, 0.0):
            if self._is_clear(number):
                return
            self.launcher.delete(self.job, number, grace_s=patience_s)
            until_s = self.clock() + patience_s + self.limits.deletion_s
            while not self._is_clear(number) and self.clock() < until_s:
                self.sleep(QUICK_POLL_S)
        if not self._is_clear(number):
            folder = self.job.directory.attempt(number)
            raise JobTimeout(
                f"{self.job.label}: something of attempt {number} is left {self.limits.deletion_s:.0f} s (deadlines.deletion_s) "
                "after it was killed (a process that waits for a dead disk cannot be killed, nor a pod whose node does not "
                f"answer, where nodes may not be read); see {folder}, end it by hand, then `resume`",
                attempt=number,
            )

    def _is_clear(self, number: int) -> bool:
        return self.launcher.read(self.job, number).remaining == 0
