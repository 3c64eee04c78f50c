"""The history of a job while it is being made: what `supervise` writes down about each attempt, kept on disk at every change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from steps.errors import JobError
from steps.job import cancel, messages
from steps.job import history as memory
from steps.job.attempt import Ending
from steps.job.classify import Failure
from steps.job.history import Attempt, History, Verdict
from steps.job.job import Job
from steps.job.retry import GiveUp, resume_step
from steps.protocol import checkpoints


@dataclass(slots=True)
class Logbook:
    """One training's attempts, as remembered in its directory."""

    job: Job
    wall: Callable[[], float]
    history: History
    has_begun: bool = field(init=False, default=False)
    """An attempt was begun or adopted by this supervisor."""

    @classmethod
    def open(cls, job: Job, wall: Callable[[], float]) -> Logbook:
        """What is remembered so far.

        Raises:
            StorageError: the history is damaged, or another training's.
        """
        return cls(job, wall, memory.load(job.directory.history, job.identity))

    def begin(self, job: Job, image: str = "") -> int:
        """Name the next attempt before it exists, so that none can exist without a name; its number."""
        last = self.history.last
        number = last.number + 1 if last else 1
        begun = Attempt(
            number, self.wall(), job.spec_digest, begins_session=not self.has_begun, nodes=job.nodes, image=image
        )
        self.has_begun = True
        self._remember(replace(self.history, attempts=(*self.history.attempts, begun)))
        return number

    def admit(self) -> None:
        """The newest attempt has left the queue."""
        self._remember(self.history.with_last(admitted_s=self.wall()))

    def close(self, failure: Failure | None, ending: Ending | None, *, is_fresh: bool = False) -> None:
        """How the newest attempt ended."""
        changes: dict[str, Any] = {
            "finished_s": self.wall(),
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
            }
        self._remember(self.history.with_last(**changes))

    def give_up(self, number: int, failure: Failure, decision: GiveUp) -> JobError:
        """Remember the verdict, by which a wish to cancel is fulfilled; the error that tells it."""
        text = messages.final_message(self.job, number, failure, decision, resume_step(self.history))
        verdict = Verdict(decision.kind, failure.failure_class.value, number, text)
        self._remember(replace(self.history, verdict=verdict))
        cancel.clear(self.job.directory)
        return messages.error_of(verdict)

    def reset_retry_count(self) -> None:
        """A person resumes: what was decided before binds no longer."""
        if self.history.verdict:
            self._remember(self.history.reset_retry_count())

    def finish(self, result: dict[str, Any]) -> None:
        """It brought a result: a wish to cancel came too late."""
        self._remember(replace(self.history, result=result))
        cancel.clear(self.job.directory)

    def spent_before_s(self) -> float:
        """Seconds that earlier supervisors' attempts took; the time when nothing ran is not counted."""
        now_s = self.wall()
        ends = ((item, item.finished_s if item.finished_s is not None else now_s) for item in self.history.counted)
        return sum(max(0.0, end_s - item.created_s) for item, end_s in ends)

    def _remember(self, history: History) -> None:
        self.history = history
        memory.save(self.job.directory.history, history)
