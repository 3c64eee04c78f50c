"""The supervisor: runs a job to its result through whatever happens. observe → snapshot → classify → decide → act.

Called by the decorator, which hands in a launcher. Launcher, time and listeners are arguments, so a test runs a day in a second.
What happened and what follows from it are decided in `classify` and `retry`; here is only the doing. Nothing here knows LoRA,
torch, Kubernetes or Metaflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from steps.errors import JobError
from steps.job import cancel, messages
from steps.job.attempt import Watch
from steps.job.budget import budget_of
from steps.job.classify import Failure
from steps.job.ending import Ending, Known
from steps.job.goodput import account_of
from steps.job.history import History
from steps.job.job import Job, Outside
from steps.job.lease import Lease, Patience, acting
from steps.job.logbook import Logbook
from steps.job.outcome import JobResult, publish
from steps.job.progress import Spent
from steps.job.retry import GiveUp, Resubmit, avoided_nodes, decide, fewer_nodes, has_trained_alike
from steps.job.snapshot import Launcher, Phase, Reason
from steps.protocol.failure_class import FailureClass
from steps.protocol.run_options import how_to_resume
from steps.protocol.rundir import write_json
from steps.settings.config import Settings

__all__ = ["Job", "JobResult", "Launcher", "Outside", "supervise"]

CANCELLED = GiveUp("cancelled", "somebody cancelled or deleted the job, which means: stop")
LOOK_S = 1.0
"""Between two looks, in the delay before an attempt, for a person's request that there is none."""
SETTLE_S = 1.0
"""For a request to the platform that Ctrl-C interrupted: Metaflow gives a step five seconds in all."""


def supervise(
    job: Job,
    launcher: Launcher,
    settings: Settings,
    outside: Outside | None = None,
    *,
    retry_permanent: bool = False,
    lease_s: float = 600.0,
    is_detached: bool = False,
) -> JobResult:
    """Run the job to its end, or adopt the one that is already running; blocks. One supervisor acts, others follow it.

    `retry_permanent`: a person resumes, so an earlier verdict does not bind. `lease_s`: without a sign of this supervisor for so
    many seconds the workers are ended. `is_detached`: they need no supervisor from the start, since this process may be killed
    without a word (a step's pod).

    Raises:
        JobPermanentError, JobRetriesExhausted, JobTimeout: it failed for good; the message says what to do.
        StorageError: the run directory cannot be used.
    """
    outside = (outside or Outside()).steadied()
    patience, limits = Patience(lease_s / 2, outside), settings.deadlines
    with acting(job, limits.total_s + limits.queue_s, outside, patience):
        book = Logbook.open(job, outside, patience)
        job = book.history.rename(job)
        lease, spent = Lease(job, lease_s, outside, patience, is_detached), Spent(outside.clock())
        watch = Watch(job, launcher, limits, lease, spent, budget_of(settings), outside, settings.recovery_is_foreign)
        return _Supervisor(job, launcher, settings, outside, watch, book).run(retry_permanent)


@dataclass(slots=True)
class _Supervisor:
    job: Job
    launcher: Launcher
    settings: Settings
    outside: Outside
    watch: Watch
    book: Logbook
    is_resumed: bool = field(init=False, default=False)
    """A person started this supervisor."""
    ended_unwatched: int = field(init=False, default=0)
    """The attempt that was over already when it was adopted; 0: none."""
    expected_step: int = field(init=False, default=0)
    """Step of the checkpoint that the attempt's workers have to begin with; 0: the attempt was not made by us."""

    @property
    def history(self) -> History:
        return self.book.history

    def run(self, retry_permanent: bool) -> JobResult:
        """From whatever is there to a result."""
        adapter = self.job.directory.adapter
        if adapter.is_dir() and any(adapter.iterdir()):
            return self._reuse()
        if self.history.verdict and not retry_permanent:
            raise messages.error_of(self.history.verdict, remembered_in=self.job.directory.path.parent)
        if retry_permanent:
            self.book.reset_retry_count()
            cancel.clear(self.job.directory)  # of an earlier supervisor: whoever starts it now does not want it to end
        elif cancel.is_requested(self.job.directory) and not (self.history.last and self.history.last.is_open):
            raise self._refuse()
        self.watch.spent.total_s += self.book.spent_before_s()
        self.is_resumed = retry_permanent
        try:
            return self._run_attempts()
        except KeyboardInterrupt:
            self._interrupt()
            raise

    def _refuse(self) -> JobError:
        """Cancelled while no launcher ran: nothing is begun."""
        number = self.history.last.number if self.history.last else 1
        failure = Failure(FailureClass.PREEMPTED, "a person cancelled it while no launcher ran")
        return self.book.give_up(number, failure, CANCELLED)

    def _run_attempts(self) -> JobResult:
        while True:
            number, is_fresh = self._begin()
            self.watch.budget.before, self.watch.budget.nodes = self.book.node_hours_before(), self.job.nodes
            ending = self._watch(number)
            failure = self.watch.conclude(number, ending)
            self._close(failure, ending, is_fresh=is_fresh)
            if failure is None:
                return self._finish(ending)
            self._answer(number, failure, ending)

    def _watch(self, number: int) -> Ending:
        """Watch to the end; when it enters or leaves a queue is noted."""
        known = Known(
            self.expected_step,
            has_trained=has_trained_alike(self.history),
            excluded=self.history.attempts[-1].excluded,
        )
        return self.watch.until_end(number, known, on_queue=self.book.note_queue)

    def _close(self, failure: Failure | None, ending: Ending | None, *, is_fresh: bool = False) -> None:
        self.watch.spent.advance(self.outside.clock())
        self.book.close(failure, ending, spent_s=self.watch.spent.attempt_s, is_fresh=is_fresh)

    def _begin(self) -> tuple[int, bool]:
        """(number of the attempt to watch, whether it is new): the open one if there is one."""
        last = self.history.last
        if last and last.is_open and last.nodes in self.job.node_choices:
            self._use_nodes(last.nodes)
        if last and last.is_open and last.spec_digest == self.job.spec_digest:
            return last.number, self._adopt(last.number)
        if last and last.is_open:
            self._replace(last.number)
        number = self.book.begin(self.job, self.settings.cluster.image)
        self._create(number)
        return number, True

    def _create(self, number: int) -> None:
        self.watch.spent.begin_attempt(self.outside.clock())
        self.expected_step = self.book.kept_step()
        try:
            self.watch.lease.patience.insist(lambda: self._start(number))
        except KeyboardInterrupt:
            self.outside.sleep(SETTLE_S)  # what was asked for may still come to exist: then it is found, and removed
            raise

    def _start(self, number: int) -> None:
        write_json(self.job.directory.spec, dict(self.job.spec))
        self.watch.lease.begin(number)
        excluded = self.history.attempts[-1].excluded
        self.launcher.create(
            self.job, number, avoid_nodes=avoided_nodes(self.history, excluded), exclude_nodes=excluded
        )

    def _adopt(self, number: int) -> bool:
        """Go on with an attempt that an earlier supervisor began; True if it had not come to exist."""
        self.book.tell("attempt_began", nodes=self.job.nodes, is_adopted=True)
        self.expected_step = 0
        self._take_over()
        snapshot = self.launcher.read(self.job, number)
        if snapshot.phase is Phase.GONE:
            self.book.begin_again()
            self._create(number)
            return True
        self.book.is_new = snapshot.is_over
        self.ended_unwatched = number if snapshot.is_over else 0
        how = "ended while nobody watched it" if snapshot.is_over else "is still running; watching over it from here"
        self.outside.notice(f"{self.job.label}: attempt {number} {how}")
        return False

    def _replace(self, number: int) -> None:
        """An open attempt with other workers or settings: it saves, stops, and makes room."""
        self.outside.notice(f"{self.job.label}: attempt {number} has other settings or workers; it is stopped first")
        self._take_over()
        self.book.is_new = False
        self.watch.clear(number, grace_s=self.settings.deadlines.grace_s)
        self._close(Failure(FailureClass.PREEMPTED, "stopped, to go on with other settings or workers"), None)

    def _take_over(self) -> None:
        """The open attempt's time goes on from where its supervisor left it, or its workers are."""
        number = self.history.attempts[-1].number
        self.watch.spent.begin_attempt(self.outside.clock(), self.book.take_over())
        lease = self.watch.lease
        lease.patience.insist(lambda: lease.begin(number, self.watch.spent.attempt_s))

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return how_to_resume(self.job.directory.path.parent)

    def _interrupt(self) -> None:
        """A person pressed Ctrl-C: the workers save and stop; a second Ctrl-C leaves that to the agent."""
        last = self.history.last
        if last is None or not last.is_open:
            self.outside.notice(
                f"{self.job.label}: interrupted between two attempts; nothing of it runs, `{self.resume}` goes on"
            )
            return
        if self.settings.detaches and not self.launcher.read(self.job, last.number).is_over:
            self.watch.spent.advance(self.outside.clock())
            self.book.leave(self.watch.spent.attempt_s)
            self.watch.lease.detach(last.number)
            self.outside.notice(
                f"{self.job.label}: left running (cluster.detach); `{self.resume}` watches over it again"
            )
            return
        self.outside.notice(
            f"{self.job.label}: interrupted; the workers save and stop, then `{self.resume}` goes on from there"
        )
        self.watch.clear(last.number, grace_s=self.settings.deadlines.grace_s)
        self._close(Failure(FailureClass.PREEMPTED, "interrupted by a person"), None)

    def _answer(self, number: int, failure: Failure, ending: Ending) -> None:
        """Act on the decision: wait for the next attempt, or give up.

        Raises:
            JobError: no further attempt.
        """
        nodes = self._next_nodes(ending)
        decision = self._decide(ending, nodes)
        if isinstance(decision, GiveUp):
            raise self.book.give_up(number, failure, decision)
        decision = replace(decision, resume_from=self.book.kept_step())
        self.outside.notice(messages.describe_retry(self.job, number, failure, decision))
        self._use_nodes(nodes)
        if self._is_cancelled_within(decision.delay_s):
            raise self.book.give_up(number, failure, CANCELLED)

    def _is_cancelled_within(self, delay_s: float) -> bool:
        """Wait for the next attempt, unless somebody asks that there is none."""
        until_s = self.outside.clock() + delay_s
        while not cancel.is_requested(self.job.directory):
            left_s = until_s - self.outside.clock()
            if left_s <= 0:
                return False
            self.outside.sleep(min(left_s, LOOK_S))
        return True

    def _next_nodes(self, ending: Ending) -> int:
        if ending.started_nodes is None:
            return self.job.nodes
        return fewer_nodes(self.job.node_choices, self.job.nodes, ending.started_nodes)

    def _decide(self, ending: Ending, nodes: int) -> Resubmit | GiveUp:
        """What follows: `retry.decide`, unless the retries are not ours, or somebody cancelled."""
        is_old_wish = self.is_resumed and self.history.attempts[-1].number == self.ended_unwatched
        if ending.snapshot.reason is Reason.CANCELLED and not is_old_wish:
            return CANCELLED
        if self.watch.budget.is_spent(self.watch.spent.attempt_s):
            return GiveUp("budget", f"all that it may use is used: {self.watch.budget.limit}")
        if self.settings.recovery_is_foreign:
            return GiveUp("exhausted", "cluster.recovery is hyperpod: its auto-resume owns the retries, and it gave up")
        return decide(
            self.history,
            self.settings.retry,
            spent_s=self.watch.spent.total_s,
            total_s=self.settings.deadlines.total_s,
            nodes=nodes,
        )

    def _use_nodes(self, nodes: int) -> None:
        """Go on with another number of nodes."""
        if nodes != self.job.nodes:
            self.outside.notice(f"{self.job.label}: going on with {nodes} of {self.job.nodes} nodes")
            self.job = replace(self.job, nodes=nodes)
            self.watch = replace(self.watch, job=self.job)

    def _finish(self, ending: Ending) -> JobResult:
        """Publish the result and write the account."""
        progress = ending.progress
        spent = account_of(self.job.directory, self.history, self.settings.prices, until_s=self.outside.wall())
        layout = progress.started or {}
        kept = {"account": spent, "layout": layout, "step": progress.step}
        self.book.finish(kept)
        folder = self.watch.lease.patience.insist(lambda: publish(self.job.directory, progress.finished or {}))
        return JobResult(folder, len(self.history.attempts), spent, layout, progress.step)

    def _reuse(self) -> JobResult:
        kept = self.history.result
        self.outside.notice(f"{self.job.label}: trained already; {self.job.directory.adapter} is used")
        account_, layout, step = kept.get("account", {}), kept.get("layout", {}), kept.get("step", self.job.total_steps)
        attempts = len(self.history.attempts)
        return JobResult(self.job.directory.adapter, attempts, account_, layout, int(step), is_reused=True)
