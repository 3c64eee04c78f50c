"""The history of a job while it is being made: what `supervise` writes down about each attempt, kept on disk at every change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from steps.errors import JobError
from steps.job import cancel, messages
from steps.job import history as memory
from steps.job.attempt import Ending
from steps.job.classify import Failure
from steps.job.history import Attempt, History, Verdict
from steps.job.job import Change, Job, Outside, Turn
from steps.job.lease import Patience, spent_so_far
from steps.job.retry import GiveUp, excluded_nodes
from steps.protocol import checkpoints


@dataclass(slots=True)
class Logbook:
    """One training's attempts, as remembered in its directory."""

    job: Job
    outside: Outside
    patience: Patience
    history: History
    has_begun: bool = field(init=False, default=False)
    """An attempt was begun or adopted by this supervisor."""

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
            begins_session=not self.has_begun,
            nodes=job.nodes,
            image=image,
            excluded=excluded_nodes(self.history, job.nodes),
        )
        self.has_begun = True
        label = self.history.label or job.label
        self._remember(replace(self.history, label=label, attempts=(*self.history.attempts, begun)))
        self.tell("attempt_began", nodes=job.nodes, is_adopted=False)
        return number

    def _newest_number(self) -> int:
        """Of the attempts that have left anything, whether the history knows them or was moved away."""
        folders = (path.name for path in self.job.directory.attempt(1).parent.glob("[0-9]*"))
        writers = (path.name.partition("-")[0] for path in self.job.directory.writers.glob("[0-9]*-*"))
        return max((int(name) for name in (*folders, *writers) if name.isdigit()), default=0)

    def note_queue(self, is_queued: bool) -> None:
        """The newest attempt has entered a queue, or left it."""
        if not is_queued:
            self._remember(self.history.with_last(admitted_s=self.wall()))
        self.tell("queued" if is_queued else "admitted")

    def tell(self, kind: Turn, /, **data: Any) -> None:
        """Tell a turn of the newest attempt's story to whoever listens."""
        number = self.history.last.number if self.history.last else 0
        self.outside.tell(Change(kind, self.wall(), number, data))

    def close(self, failure: Failure | None, ending: Ending | None, *, spent_s: float, is_fresh: bool = False) -> None:
        """How the newest attempt ended."""
        changes: dict[str, Any] = {
            "finished_s": self.wall(),
            "spent_s": round(spent_s, 3),
            "complete_step": checkpoints.newest_step(self.job.directory.checkpoints),
        }
        if ending:
            ready_s = ending.ready_s if is_fresh else None  # an adopted one's first step was not seen in time
            changes |= {"step": ending.progress.step if ending.progress.has_trained else None, "ready_s": ready_s}
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
        self._remember(self.history.with_last(**changes))
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
        if attempt.spent_s is not None:
            return max(attempt.spent_s, spent_so_far(self.job.directory, attempt.number) if attempt.is_open else 0.0)
        if attempt.finished_s is None:
            return spent_so_far(self.job.directory, attempt.number)
        return max(0.0, attempt.finished_s - max(attempt.admitted_s or 0.0, attempt.created_s))

    def _remember(self, history: History) -> None:
        self.history = history
        self.patience.insist(lambda: memory.save(self.job.directory.history, history))
