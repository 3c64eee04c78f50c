"""What is known of an attempt before it is watched, and how the watching ended: two frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from steps.job.progress import Passed, Progress, Work
from steps.job.snapshot import JobSnapshot


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
    is_over_budget: bool = False
    """All that it may use of the cluster is used."""
    queued_s: float = 0.0
    """Seconds that it spent in a queue."""
    contradiction: str = ""
    """Its workers began where they cannot have meant to."""

    @property
    def started_nodes(self) -> int | None:
        """How many nodes had started when the startup deadline passed; None if it was kept, or not for want of nodes."""
        if self.passed is None or self.passed.work is not Work.STARTUP or self.snapshot.is_refused:
            return None
        return sum(worker.started_s is not None for worker in self.snapshot.workers)

    @property
    def ready_s(self) -> float | None:
        """Seconds outside a queue until its first training step was seen."""
        trained_at_s = self.progress.trained_at_s
        return None if trained_at_s is None else max(0.0, trained_at_s - self.begun_s - self.queued_s)

    @property
    def failed_s(self) -> float | None:
        """Unix time when the first worker failed, if known."""
        return min(
            (worker.finished_s for worker in self.snapshot.workers if worker.finished_s and worker.has_failed),
            default=None,
        )


@dataclass(frozen=True, slots=True)
class Known:
    """What the supervisor knows of an attempt before it is looked at."""

    expected_step: int = 0
    """Of the checkpoint that its workers have to begin with, as seen when it was made; 0: any."""
    has_trained: bool = False
    """An earlier attempt with the same image and spec has: what refuses its workers now is new, and may be lifted."""
    excluded: tuple[str, ...] = ()
    """Nodes that it leaves out."""
