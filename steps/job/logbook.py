"""The history of a job while it is being made: what `supervise` writes down about each attempt, kept on disk at every change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from steps.errors import JobError
from steps.job import cancel, messages
from steps.job import history as memory
from steps.job import progress as deadlines
from steps.job.classify import Failure
from steps.job.ending import Ending
from steps.job.history import Attempt, Clocks, History, Verdict
from steps.job.job import Change, Job, Outside, Turn
from steps.job.lease import Patience, spent_so_far
from steps.job.progress import Progress
from steps.job.retry import GiveUp, excluded_nodes
from steps.protocol import checkpoints
from steps.protocol.events import EventTail
from steps.protocol.rundir import TrainDir
from steps.protocol.writer import Writer

NEAR_S = 3600.0
"""Workers whose first word comes within this time of their attempt's beginning have the clock of its supervisor."""
NOISE_S = 5.0
"""Clocks that differ by less are the same: a file system's clock is read roughly."""


@dataclass(slots=True)
class Told:
    """What an attempt's workers have told, with the times of the first and the last word on their own clock; 0: nothing."""

    progress: Progress
    first_s: float = 0.0
    last_s: float = 0.0


def read_told(directory: TrainDir, number: int) -> Told:
    """All that an attempt's workers have told so far."""
    told = Told(deadlines.begin(0.0))
    for event in EventTail(directory.events(number)).read_new():
        told.progress = deadlines.advance(told.progress, event, event.time_s)
        told.first_s, told.last_s = told.first_s or event.time_s, event.time_s
    return told


@dataclass(slots=True)
class Logbook:
    """One training's attempts, as remembered in its directory."""

    job: Job
    outside: Outside
    patience: Patience
    history: History
    clocks: Clocks = field(init=False)
    shift_s: float = field(init=False, default=0.0)
    """By so many seconds our Unix time is ahead of that of the labels: another machine's clock, or one that was set meanwhile."""
    is_new: bool = field(init=False, default=True)
    """This supervisor has watched nothing yet: before it, nobody may have been there."""

    def __post_init__(self) -> None:
        now_s = self.outside.wall()
        ahead_s = now_s - self.outside.disk(self.job.directory.path)
        self.clocks = Clocks(self.outside.boot(), now_s - self.outside.clock(), ahead_s)
        shift_s = self.clocks.ahead_of(self.history.clocks) if self.history.clocks else 0.0
        self.shift_s = shift_s if abs(shift_s) > NOISE_S else 0.0

    @classmethod
    def open(cls, job: Job, outside: Outside, patience: Patience) -> Logbook:
        """What is remembered so far.

        Raises:
            StorageError: the history is damaged, or another training's.
        """
        return cls(job, outside, patience, patience.insist(lambda: memory.load(job.directory.history, job.identity)))

    @property
    def wall(self) -> Callable[[], float]:
        """Unix time."""
        return self.outside.wall

    def begin(self, job: Job, image: str = "") -> int:
        """Name the next attempt, and what it leaves out, before it exists, so that none can exist without; its number."""
        number = 1 + max(self._newest_number(), self.history.last.number if self.history.last else 0)
        begun = Attempt(
            number,
            self.wall(),
            job.spec_digest,
            begins_session=self.is_new,
            nodes=job.nodes,
            image=image,
            excluded=excluded_nodes(self.history, job.nodes),
            idle_s=self._idle_s(self.history.last),
        )
        self.is_new = False
        label = self.history.label or job.label
        self._label(replace(self.history, label=label, attempts=(*self.history.attempts, begun)))
        self.tell("attempt_began", nodes=job.nodes, is_adopted=False)
        return number

    def begin_again(self) -> None:
        """The newest attempt was named by an earlier supervisor, and never came to exist: it begins now."""
        before = self.history.attempts[-2] if len(self.history.attempts) > 1 else None
        changes = {"begins_session": self.is_new, "idle_s": self._idle_s(before)}
        self.is_new = False
        self._label(self.history.with_last(created_s=self.wall(), admitted_s=None, **changes))

    def _idle_s(self, before: Attempt | None) -> float | None:
        """Seconds since that attempt's end, if nobody was there."""
        if before is None or not self.is_new:
            return 0.0
        if before.finished_s is None:
            return None
        return round(max(0.0, self.wall() - self.shift_s - before.finished_s), 3)

    def take_over(self) -> float:
        """The open attempt goes on under our clock; the seconds that it has used so far."""
        shift_s, last = self.shift_s, self.history.attempts[-1]
        spent_s = self.spent_of(last)
        if shift_s:
            admitted_s = None if last.admitted_s is None else last.admitted_s + shift_s
            self._label(self.history.with_last(created_s=last.created_s + shift_s, admitted_s=admitted_s))
        return spent_s

    def _newest_number(self) -> int:
        """Of the attempts that have left anything, whether the history knows them or was moved away."""
        writers = (Writer.parse(path.name) for path in self.job.directory.writers.glob("[0-9]*-*"))
        return max((*self.job.directory.numbers(), *(writer.attempt for writer in writers if writer)), default=0)

    def note_queue(self, is_queued: bool) -> None:
        """The newest attempt has entered a queue, or left it."""
        if not is_queued:
            self._label(self.history.with_last(admitted_s=self.wall()))
        self.tell("queued" if is_queued else "admitted")

    def tell(self, kind: Turn, /, **data: Any) -> None:
        """Tell a turn of the newest attempt's story to whoever listens."""
        number = self.history.last.number if self.history.last else 0
        self.outside.tell(Change(kind, self.wall(), number, data))

    def close(self, failure: Failure | None, ending: Ending | None, *, spent_s: float, is_fresh: bool = False) -> None:
        """How the newest attempt ended. Where nobody watched that, what its workers took tells when: nothing after it counts."""
        last = self.history.attempts[-1]
        progress = ending.progress if ending else read_told(self.job.directory, last.number).progress
        unwatched_s = (last.admitted_s or last.created_s) + spent_s
        changes: dict[str, Any] = {
            "finished_s": min(self.wall(), unwatched_s) if self.is_new else self.wall(),
            "spent_s": round(spent_s, 3),
            "complete_step": checkpoints.newest_step(self.job.directory.checkpoints),
            "step": progress.step if progress.has_trained else None,
        }
        if ending:  # an adopted one's first step was not seen in time
            changes |= {"ready_s": ending.ready_s if is_fresh else None}
        if failure:
            changes |= {
                "failed_s": ending.failed_s if ending else None,
                "failure_class": failure.failure_class.value,
                "message": failure.message[:2000],
                "rank": failure.rank,
                "node": failure.node,
                "step": failure.step,
                "is_at_start": failure.is_at_start,
                "lacks_room": failure.lacks_room,
            }
        self._label(self.history.with_last(**changes))
        self.tell("attempt_ended", **asdict(self.history.attempts[-1]))

    def give_up(self, number: int, failure: Failure, decision: GiveUp) -> JobError:
        """Remember the verdict, clear a cancel request, and return the error that tells it."""
        text = messages.final_message(self.job, number, failure, decision, self.kept_step())
        verdict = Verdict(decision.kind, failure.failure_class.value, number, text)
        self._remember(replace(self.history, verdict=verdict))
        self.tell("gave_up", kind=verdict.kind, failure_class=verdict.failure_class, message=verdict.message)
        cancel.conclude(self.job.directory)
        return messages.error_of(verdict)

    def reset_retry_count(self) -> None:
        """A person resumes: what was decided before binds no longer, and what failed before is not held against it."""
        if self.history.reset_retry_count() != self.history:
            self._remember(self.history.reset_retry_count())

    def kept_step(self) -> int:
        """Step of the newest complete checkpoint that is there now, whatever was seen before; 0: none."""
        return checkpoints.newest_step(self.job.directory.checkpoints)

    def finish(self, result: dict[str, Any]) -> None:
        """Remember the result; a cancel request came too late, and is cleared."""
        self._remember(replace(self.history, result=result))
        self.tell("finished", step=result["step"], account=result["account"])
        cancel.clear(self.job.directory)

    def leave(self, spent_s: float) -> None:
        """The newest attempt goes on unwatched."""
        self._remember(self.history.with_last(spent_s=round(spent_s, 3)))

    def spent_before_s(self) -> float:
        """Seconds that earlier supervisors' attempts took, as far as somebody watched; see `Spent` for what counts."""
        return sum(self.spent_of(item) for item in self.history.counted)

    def node_hours_before(self) -> float:
        """What the attempts before the newest have held of the cluster, as far as they count against the budget."""
        earlier = self.history.attempts[self.history.not_budgeted : -1]
        return sum(self.spent_of(item) * (item.nodes or 1) for item in earlier) / 3600

    def spent_of(self, attempt: Attempt) -> float:
        """Seconds of one attempt: as noted at its end; as its lease tells, if it is open; by its labels, of older versions."""
        if attempt.is_open:
            return max(attempt.spent_s or 0.0, spent_so_far(self.job.directory, attempt.number), self._ran_s(attempt))
        if attempt.spent_s is not None:
            return attempt.spent_s
        return max(0.0, (attempt.finished_s or 0.0) - max(attempt.admitted_s or 0.0, attempt.created_s))

    def _ran_s(self, attempt: Attempt) -> float:
        """For how long an open attempt's workers were at work, watched or not: by their own clock, and by ours not longer."""
        told, begun_s = read_told(self.job.directory, attempt.number), attempt.admitted_s or attempt.created_s
        has_same_clock = begun_s <= told.first_s <= begun_s + NEAR_S
        ran_s = told.last_s - (begun_s if has_same_clock else told.first_s)
        return max(0.0, min(ran_s, self.wall() - self.shift_s - begun_s))

    def _label(self, history: History) -> None:
        """Remember what holds times of our clock."""
        self._remember(replace(history, clocks=self.clocks))
        self.shift_s = 0.0

    def _remember(self, history: History) -> None:
        self.history = history
        self.patience.insist(lambda: memory.save(self.job.directory.history, history))
