"""One attempt, watched from its beginning until nothing of it is left. Used by `supervise`; it knows no history and no retry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from steps.errors import JobTimeout, StorageError
from steps.job import cancel
from steps.job import progress as deadlines
from steps.job.agent.runtime_log import find_broken_hardware
from steps.job.budget import Budget
from steps.job.classify import Failure, classify, of_hardware
from steps.job.ending import Ending, Known
from steps.job.job import Job, Outside
from steps.job.lease import Lease
from steps.job.outcome import collect_stacks, result_damage, save_evidence, waits_of
from steps.job.progress import Passed, Progress, Spent, Work
from steps.job.snapshot import JobSnapshot, Launcher, Reason
from steps.plain_text import both_ends
from steps.protocol.checkpoints import newest_step
from steps.protocol.events import Event, EventTail
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import read_records
from steps.protocol.run_options import how_to_resume
from steps.protocol.rundir import require_there, write_json
from steps.settings.config import Deadlines

POLL_S = 0.5
QUICK_POLL_S = 0.1
"""Between two looks while workers start or leave: then a second matters to a person who waits."""
PEER_WORD_S = 30.0
"""An ending that names another node's failure waits so long for that node's own word, before it is judged."""
WAIT_WORD_S = 20.0
"""A node that waits for another for so long, before its workers begin, is worth a sentence."""
OTHERS_S = 600.0
"""An attempt that leaves out a broken node waits so long for room on others: a platform that replaces the node may need it."""
HANG_GRACE_S = 5.0
"""Grace of workers that missed a deadline: they have nothing to save, or cannot."""


@dataclass(slots=True)
class _Seen:
    """What the looks at an attempt have brought so far."""

    tail: EventTail
    begun_s: float
    known: Known
    expected_step: int = field(init=False)
    progress: Progress = field(init=False)
    contradiction: str = ""
    """Why its workers cannot be right about where to begin."""
    over_s: float | None = None
    """Since when all of its workers have ended."""
    is_refusal_told: bool = False
    waits_s: float | None = None
    """Since when a node waits for another."""
    is_wait_told: bool = False
    new: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.progress, self.expected_step = deadlines.begin(self.begun_s), self.known.expected_step

    def read_events(self, now_s: float, job: Job) -> None:
        """Take in what the workers have written."""
        for event in self.tail.read_new():
            self.progress = deadlines.advance(self.progress, event, now_s)
            self.new.append(event)
            if event.kind == "started":
                self.contradiction = _contradiction(event, self.expected_step, job)
                self.expected_step = 0  # workers made anew later begin with what was saved since

    def found_no_room(self, snapshot: JobSnapshot, now_s: float) -> Passed | None:
        """Nodes are left out, and for long enough no others could take it."""
        waited_s = now_s - self.progress.since_s
        is_waiting = self.progress.work is Work.STARTUP and snapshot.lacks_room
        if self.known.excluded and is_waiting and waited_s > OTHERS_S:
            return Passed(Work.STARTUP, OTHERS_S, waited_s, self.known.excluded)
        return None

    def take_new(self) -> list[Event]:
        """Events that nobody has been told of yet."""
        told, self.new = self.new, []
        return told


def _contradiction(started: Event, expected_step: int, job: Job) -> str:
    """Why the workers should have begun later than they did; empty if they are right.

    A checkpoint that they found damaged was set aside before they said so; one that does not fit them they name.
    """
    is_later = started.step >= expected_step or started.data.get("passed_over")
    if is_later or newest_step(job.directory.checkpoints) < expected_step:
        return ""
    return (
        f"its workers begin at step {started.step}, although the checkpoint of step {expected_step} is complete in "
        f"{job.directory.checkpoints}: they do not see what the launcher sees there; look at the mounts of the run directory"
    )


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks at attempts of a job through a launcher."""

    job: Job
    launcher: Launcher
    limits: Deadlines
    lease: Lease
    spent: Spent
    budget: Budget
    outside: Outside
    is_foreign: bool = False
    """The cluster makes failed workers anew within an attempt (`cluster.recovery: hyperpod`)."""

    def until_end(self, number: int, known: Known, *, on_queue: Callable[[bool], None]) -> Ending:
        """Look until the attempt is over, a deadline has passed, or all the time is spent.

        `on_queue` is told True when it enters a queue, False when it leaves.

        Raises:
            StorageError: the run directory has failed until half of the lease was gone.
        """
        seen = _Seen(EventTail(self.job.directory.events(number)), self.outside.clock(), known)
        while True:
            ending = None
            try:
                ending = self._look(number, seen, on_queue)
                self.lease.advance(number, self.spent.attempt_s)
            except (OSError, StorageError) as error:
                self.lease.patience.excuse(error)
            for event in seen.take_new():
                self.outside.observe(event)
            if ending:
                return ending
            self.outside.sleep(QUICK_POLL_S if seen.progress.work in (Work.STARTUP, Work.EXIT) else POLL_S)

    def _look(self, number: int, seen: _Seen, on_queue: Callable[[bool], None]) -> Ending | None:
        """One look; what it says of the end."""
        self.spent.advance(self.outside.clock(), is_queued=seen.progress.work is Work.QUEUE)
        snapshot = self.launcher.read(self.job, number)
        now_s = self.outside.clock()
        was_queued = seen.progress.work is Work.QUEUE
        seen.read_events(now_s, self.job)
        seen.progress = deadlines.observe_phase(seen.progress, snapshot.phase, now_s, is_foreign=self.is_foreign)
        if was_queued != (seen.progress.work is Work.QUEUE):
            on_queue(not was_queued)
        if seen.progress.started is None and not seen.is_wait_told:
            self._tell_wait(number, seen, now_s)
        ending = Ending(snapshot, seen.progress, seen.begun_s, queued_s=self.spent.queued_s)
        is_over = snapshot.is_over and not self._may_be_lifted(snapshot, seen)
        seen.over_s = (now_s if seen.over_s is None else seen.over_s) if is_over else None
        if seen.over_s is not None and not (now_s - seen.over_s < PEER_WORD_S and self._awaits_word(number, snapshot)):
            return ending
        if cancel.is_requested(self.job.directory):
            return replace(ending, snapshot=replace(snapshot, reason=Reason.CANCELLED))
        if seen.contradiction:
            return replace(ending, contradiction=seen.contradiction)
        passed = deadlines.passed_deadline(seen.progress, self.limits, now_s) or seen.found_no_room(snapshot, now_s)
        if snapshot.silent_s and passed and passed.work in (Work.QUEUE, Work.STARTUP):
            passed = None  # only the platform knows what it waits for: judged when it can be asked again
        is_out_of_time = self.spent.total_s > self.limits.total_s
        is_over_budget = self._is_over_budget()
        if passed or is_out_of_time or is_over_budget:
            return replace(ending, passed=passed, is_out_of_time=is_out_of_time, is_over_budget=is_over_budget)
        return None

    def _tell_wait(self, number: int, seen: _Seen, now_s: float) -> None:
        """What nodes wait for before their workers begin, once it takes long: nobody else says anything then."""
        if not (words := waits_of(self.job.directory.files(number))):
            seen.waits_s = None
            return
        seen.waits_s = now_s if seen.waits_s is None else seen.waits_s
        if now_s - seen.waits_s >= WAIT_WORD_S:
            seen.is_wait_told = True
            self.outside.notice(f"{self.job.label}: {words[0]}{f' (and {len(words) - 1} more)' if words[1:] else ''}")

    def _is_over_budget(self) -> bool:
        if warning := self.budget.warning(self.spent.attempt_s):
            self.outside.notice(f"{self.job.label}: {warning}")
        return self.budget.is_spent(self.spent.attempt_s)

    def _may_be_lifted(self, snapshot: JobSnapshot, seen: _Seen) -> bool:
        """Its workers are refused by a rule that is new, since such workers have trained before: told once, and waited for."""
        if not (snapshot.is_refused and seen.known.has_trained):
            return False
        if not seen.is_refusal_told:
            seen.is_refusal_told = True
            self.outside.notice(
                f"{self.job.label}: {both_ends(snapshot.message, 400)}; such workers have trained before, so this rule is new: "
                f"it is waited for until it is lifted, up to {self.limits.startup_s:.0f} s from the start (deadlines.startup_s)"
            )
        return True

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
        insist = self.lease.patience.insist
        insist(
            lambda: require_there(self.job.directory.path)
        )  # else it would be made again, with nothing to go on from
        if ending.snapshot.reason is Reason.CANCELLED and ending.snapshot.remaining:
            insist(lambda: self._let_save(number, ending.progress))
        failure = self._failure(number, ending)
        if failure:
            insist(lambda: save_evidence(self.job, number, ending.snapshot, failure, self.launcher))
        insist(lambda: self.clear(number, grace_s=HANG_GRACE_S if ending.passed else self.limits.grace_s))
        return failure

    def _let_save(self, number: int, progress: Progress) -> None:
        """A person does not want it any more: where a step takes longer than the grace period, it is waited for all the same."""
        limit_s = deadlines.time_to_save_s(progress, self.limits.grace_s)
        if limit_s <= self.limits.grace_s:
            return  # the deletion gives the workers as much
        self.outside.notice(f"{self.job.label}: cancelled; its workers have {limit_s:.0f} s to end their step and save")
        write_json(self.job.directory.files(number).stop, {"grace_s": limit_s, "reason": "cancelled"})
        until_s = self.outside.clock() + limit_s
        while not self.launcher.read(self.job, number).is_over and self.outside.clock() < until_s:
            self.lease.advance(number, self.spent.attempt_s)
            self.outside.sleep(QUICK_POLL_S)

    def _failure(self, number: int, ending: Ending) -> Failure | None:
        finished, step = ending.progress.finished, ending.progress.step
        damage = result_damage(self.job.directory, finished) if finished else None
        if finished and damage is None:
            return None
        if damage:
            return Failure(FailureClass.STORAGE, f"the result is not whole: {damage}", step=step)
        if ending.contradiction:
            return Failure(FailureClass.STORAGE, ending.contradiction, step=step)
        if ending.is_out_of_time:
            return Failure(FailureClass.PREEMPTED, "the total deadline (deadlines.total_s) has passed", step=step)
        if ending.is_over_budget:
            return Failure(FailureClass.PREEMPTED, f"the budget is used up: {self.budget.limit}", step=step)
        if ending.passed:
            collect_stacks(self.job, number, sleep=self.outside.sleep)
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
            self._wait_until_clear(number, patience_s + self.limits.deletion_s)
        if not self._is_clear(number):
            folder = self.job.directory.attempt(number)
            raise JobTimeout(
                f"{self.job.label}: something of attempt {number} is left {self.limits.deletion_s:.0f} s (deadlines.deletion_s) "
                "after it was killed (a process that waits for a dead disk cannot be killed, nor a pod whose node does not "
                f"answer, where nodes may not be read); see {folder}, end it by hand, then "
                f"`{how_to_resume(self.job.directory.path.parent)}`",
                attempt=number,
            )

    def _wait_until_clear(self, number: int, limit_s: float) -> None:
        """Time in which the platform cannot be asked does not count: nobody knows what is left then."""
        at_s = self.outside.clock()
        while limit_s > 0:
            snapshot = self.launcher.read(self.job, number)
            if snapshot.remaining == 0:
                return
            self.outside.sleep(QUICK_POLL_S)
            passed_s, at_s = self.outside.clock() - at_s, self.outside.clock()
            limit_s -= 0.0 if snapshot.silent_s else passed_s

    def _is_clear(self, number: int) -> bool:
        return self.launcher.read(self.job, number).remaining == 0
