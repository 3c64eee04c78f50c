"""The supervisor: runs a job to its result through whatever happens. observe → snapshot → classify → decide → act.

Called by the decorator, which hands in a launcher. Launcher, clocks and sleep are arguments, so a test runs a day in a second.
What happened and what follows from it are decided in `failures` and `retry`; here is only the doing. Nothing here knows LoRA,
torch, Kubernetes or Metaflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steps import checkpoints
from steps.config import Settings
from steps.events import Event
from steps.failure_record import FailureClass
from steps.job import history as memory
from steps.job import words
from steps.job.accounting import account_of
from steps.job.attempt import Ending, Watch
from steps.job.failures import Failure
from steps.job.history import Attempt, History, Verdict
from steps.job.job import Job
from steps.job.launcher import Launcher
from steps.job.lease import Lease, acting
from steps.job.publish import publish
from steps.job.retry import GiveUp, Resubmit, decide, excluded_nodes, fewer_nodes, resume_step
from steps.job.status import Phase, Reason
from steps.rundir import write_json

__all__ = ["Job", "JobResult", "Launcher", "supervise"]


@dataclass(frozen=True, slots=True)
class JobResult:
    """A finished job."""

    result_dir: Path
    attempts: int
    account: dict[str, Any]
    """See `account.account`."""
    layout: dict[str, Any]
    """Data of the last attempt's `started` event: world, processes and so on."""
    step: int
    """Steps done."""
    is_reused: bool = False
    """It had been published before; nothing ran."""


def supervise(
    job: Job,
    launcher: Launcher,
    settings: Settings,
    *,
    observe: Callable[[Event], None] = lambda event: None,
    notice: Callable[[str], None] = lambda sentence: None,
    retry_permanent: bool = False,
    lease_s: float = 600.0,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> JobResult:
    """Run the job to its end, or adopt the one that is already running; blocks. One supervisor acts, others follow it.

    `observe` gets every event of the workers, `notice` a sentence about each decision. `retry_permanent`: a person resumes, so
    an earlier verdict does not bind.

    Raises:
        JobPermanentError, JobRetriesExhausted, JobTimeout: it failed for good; the message says what to do.
        StorageError: the run directory cannot be used.
    """
    watch = Watch(job, launcher, settings.deadlines, Lease(job, lease_s, clock), observe, clock, sleep)
    with acting(job, settings.deadlines.total_s, observe=observe, notice=notice, clock=clock, sleep=sleep):
        history = memory.load(job.directory.history, job.identity)
        return _Supervisor(job, launcher, settings, watch, notice, clock, wall, sleep, history).run(retry_permanent)


@dataclass(slots=True)
class _Supervisor:
    job: Job
    launcher: Launcher
    settings: Settings
    watch: Watch
    notice: Callable[[str], None]
    clock: Callable[[], float]
    wall: Callable[[], float]
    sleep: Callable[[float], None]
    history: History
    begun_s: float = field(init=False, default=0.0)
    """Clock time at which the total deadline began to count."""
    has_begun: bool = field(init=False, default=False)
    """An attempt was begun or adopted here."""

    def run(self, retry_permanent: bool) -> JobResult:
        """From whatever is there to a result."""
        if self.job.directory.adapter.is_dir():
            return self._reuse()
        if self.history.verdict and not retry_permanent:
            raise words.error_of(self.history.verdict, remembered=True)
        if self.history.verdict:
            self._remember(self.history.forgive())
        self.begun_s = self.clock() - self._spent_before_s()
        excluded = excluded_nodes(self.history, self.job.nodes)
        while True:
            number, is_fresh = self._begin(excluded)
            try:
                ending = self._watch(number)
                failure = self.watch.conclude(number, ending)
            except KeyboardInterrupt:
                self._interrupt(number)
                raise
            self._close(failure, ending, is_fresh=is_fresh)
            if failure is None:
                return self._finish(ending)
            excluded = self._answer(number, failure, ending)

    def _watch(self, number: int) -> Ending:
        """Watch to the end; time in a queue is noted."""
        return self.watch.until_end(
            number,
            out_of_time_s=self.begun_s + self.settings.deadlines.total_s,
            on_admitted=lambda: self._remember(self.history.with_last(admitted_s=self.wall())),
        )

    def _begin(self, excluded: tuple[str, ...]) -> tuple[int, bool]:
        """(number of the attempt to watch, whether it is new): the open one if there is one."""
        last = self.history.last
        if last and last.is_open and last.nodes in self.job.node_choices:
            self._use_nodes(last.nodes)
        if last and last.is_open and last.spec_digest == self.job.spec_digest:
            return last.number, self._adopt(last.number, excluded)
        if last and last.is_open:
            self._replace(last.number)
        number = last.number + 1 if last else 1
        begun = Attempt(
            number, self.wall(), self.job.spec_digest, begins_session=not self.has_begun, nodes=self.job.nodes
        )
        self.has_begun = True
        self._remember(replace(self.history, attempts=(*self.history.attempts, begun)))
        self._create(number, excluded)
        return number, True

    def _create(self, number: int, excluded: tuple[str, ...]) -> None:
        """The history names an attempt before it exists, so none can exist without a name."""
        write_json(self.job.directory.spec, dict(self.job.spec))
        self.watch.lease.begin(number)
        self.launcher.create(self.job, number, exclude_nodes=excluded)

    def _adopt(self, number: int, excluded: tuple[str, ...]) -> bool:
        """Go on with an attempt that an earlier supervisor began; True if it had not come to exist."""
        self.has_begun = True
        self.watch.lease.begin(number)
        snapshot = self.launcher.read(self.job, number)
        if snapshot.phase is Phase.GONE:
            self._create(number, excluded)
            return True
        how = "ended while nobody watched it" if snapshot.is_over else "is still running; watching over it from here"
        self.notice(f"{self.job.label}: attempt {number} {how}")
        return False

    def _replace(self, number: int) -> None:
        """An open attempt with other workers or settings: it saves, stops, and makes room."""
        self.notice(f"{self.job.label}: attempt {number} has other settings or workers; it is stopped first")
        self.watch.clear(number, grace_s=self.settings.deadlines.grace_s)
        self._close(Failure(FailureClass.PREEMPTED, "stopped, to go on with other settings or workers"), None)

    def _interrupt(self, number: int) -> None:
        """A person pressed Ctrl-C: the workers save and stop; a second Ctrl-C leaves that to the keeper."""
        if self.settings.detaches:
            self.watch.lease.detach(number)
            self.notice(f"{self.job.label}: left running (cluster.detach); `resume` watches over it again")
            return
        self.notice(f"{self.job.label}: interrupted; the workers save and stop, then `resume` goes on from there")
        self.watch.clear(number, grace_s=self.settings.deadlines.grace_s)
        self._close(Failure(FailureClass.PREEMPTED, "interrupted by a person"), None)

    def _close(self, failure: Failure | None, ending: Ending | None, *, is_fresh: bool = False) -> None:
        """Write down how the newest attempt ended."""
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
            }
        self._remember(self.history.with_last(**changes))

    def _answer(self, number: int, failure: Failure, ending: Ending) -> tuple[str, ...]:
        """Act on the decision: wait for the next attempt (returns the nodes to leave out), or give up.

        Raises:
            JobError: no further attempt.
        """
        nodes = self._next_nodes(ending)
        decision = self._decide(ending, nodes)
        if isinstance(decision, GiveUp):
            text = words.final_message(self.job, number, failure, decision, resume_step(self.history))
            verdict = Verdict(decision.kind, failure.failure_class.value, number, text)
            self._remember(replace(self.history, verdict=verdict))
            raise words.error_of(verdict)
        self.notice(words.describe_retry(self.job, number, failure, decision))
        self._use_nodes(nodes)
        if decision.delay_s:
            self.sleep(decision.delay_s)
        return decision.exclude_nodes

    def _next_nodes(self, ending: Ending) -> int:
        if ending.started_nodes is None:
            return self.job.nodes
        return fewer_nodes(self.job.node_choices, self.job.nodes, ending.started_nodes)

    def _decide(self, ending: Ending, nodes: int) -> Resubmit | GiveUp:
        """What follows: `retry.decide`, unless the retries are not ours, or somebody cancelled."""
        if ending.snapshot.reason is Reason.CANCELLED:
            return GiveUp("cancelled", "somebody cancelled or deleted the job, which means: stop")
        if self.settings.recovery_is_foreign:
            return GiveUp("exhausted", "cluster.recovery is hyperpod: its auto-resume owns the retries, and it gave up")
        return decide(
            self.history,
            self.settings.retry,
            spent_s=self.clock() - self.begun_s,
            total_s=self.settings.deadlines.total_s,
            nodes=nodes,
        )

    def _use_nodes(self, nodes: int) -> None:
        """Go on with another number of nodes."""
        if nodes != self.job.nodes:
            self.notice(f"{self.job.label}: going on with {nodes} of {self.job.nodes} nodes")
            self.job = replace(self.job, nodes=nodes)
            self.watch = replace(self.watch, job=self.job)

    def _finish(self, ending: Ending) -> JobResult:
        """Publish the result and write the account."""
        progress = ending.progress
        spent = account_of(self.job.directory, self.history, self.settings.launcher, until_s=self.wall())
        layout = progress.started or {}
        kept = {"account": spent, "layout": layout, "step": progress.step}
        self._remember(replace(self.history, result=kept))
        folder = publish(self.job.directory, progress.finished or {})
        return JobResult(folder, len(self.history.attempts), spent, layout, progress.step)

    def _reuse(self) -> JobResult:
        kept = self.history.result
        self.notice(f"{self.job.label}: trained already; {self.job.directory.adapter} is used")
        account_, layout, step = kept.get("account", {}), kept.get("layout", {}), kept.get("step", self.job.total_steps)
        attempts = len(self.history.attempts)
        return JobResult(self.job.directory.adapter, attempts, account_, layout, int(step), is_reused=True)

    def _spent_before_s(self) -> float:
        """Seconds that earlier supervisors' attempts took; the time when nothing ran is not counted."""
        now_s = self.wall()
        ends = ((item, item.finished_s if item.finished_s is not None else now_s) for item in self.history.counted)
        return sum(max(0.0, end_s - item.created_s) for item, end_s in ends)

    def _remember(self, history: History) -> None:
        self.history = history
        memory.save(self.job.directory.history, history)
