"""`@pytorchjob`: gives a step `current.pytorchjob`, which runs a module as a distributed job and brings it home.

    @pytorchjob
    @step
    def train(self):
        result = current.pytorchjob.run("steps.train.worker", spec, directory=..., ...)

The decorator builds the real launcher, adds @retry (for a launcher that dies) and a live card, and turns this project's errors
into Metaflow's. The retry that knows checkpoints is the supervisor's (`steps/job`). Every command of Metaflow reads this file,
`--help` too, so what a step needs is imported in the step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metaflow import StepMutator, UserStepDecorator, current

from steps.errors import (
    ConfigError,
    JobBudgetSpent,
    JobCancelled,
    JobPermanentError,
    JobRetriesExhausted,
    JobTimeout,
    LoraFlowError,
)
from steps.flow import metaflow_internals
from steps.flow.parameters import FlowError

if TYPE_CHECKING:
    from steps.flow.cards.metaflow_cards import TrainCard
    from steps.flow.terminal import ProgressPrinter
    from steps.job.job import Change
    from steps.job.snapshot import Launcher
    from steps.job.supervise import Job, JobResult
    from steps.protocol.events import Event
    from steps.report.reporter import Reporter
    from steps.settings.config import Settings

TRAIN_CARD = "training"
FINAL = (JobPermanentError, JobRetriesExhausted, JobTimeout, JobBudgetSpent, JobCancelled, ConfigError)
"""Errors after which Metaflow's own @retry must not start the step again."""


@dataclass(frozen=True, slots=True)
class _Told:
    """Who is told of a job: the terminal, the card, and trackers where there are any."""

    printer: ProgressPrinter
    card: TrainCard
    reporter: Reporter | None

    def notice(self, sentence: str) -> None:
        self.printer.notice(sentence)
        self.card.notice(sentence)

    def observe(self, event: Event) -> None:
        self.printer.observe(event)
        self.card.observe(event)
        self._pass_on(self.reporter.sentences() if self.reporter else [])

    def tell(self, change: Change) -> None:
        if self.reporter:
            self.reporter.tell(change)

    def close(self) -> None:
        self._pass_on(self.reporter.close() if self.reporter else [])

    def _pass_on(self, sentences: list[str]) -> None:
        """What is to say of a tracker is said by this thread: two that print at once garble the terminal."""
        for sentence in sentences:
            self.notice(sentence)


class JobHandle:
    """`current.pytorchjob` inside the step."""

    def __init__(self, card: Any) -> None:
        self._card = card

    def run(
        self,
        job: Job,
        settings: Settings,
        *,
        title: str,
        facts: Mapping[str, object],
        reporter: Reporter | None = None,
    ) -> JobResult:
        """Run the job to its end, or adopt the one that is already running; blocks.

        `title` and `facts` head the live card; `reporter` tells trackers and people.

        Raises:
            JobError: it failed for good, too often, or took too long.
        """
        from steps.flow import launchers
        from steps.flow.cards.metaflow_cards import TrainCard
        from steps.flow.heartbeat import Heartbeat
        from steps.flow.terminal import ProgressPrinter
        from steps.job import cancel
        from steps.job.supervise import Outside, supervise
        from steps.protocol.rundir import RunDir

        card = TrainCard(self._card, title=title, facts=facts, folder=job.directory.path)
        told = _Told(ProgressPrinter(), card, reporter)
        on_cluster = settings.is_on_cluster
        launcher = _on_cluster(job, settings, told.notice) if on_cluster else launchers.local_launcher(settings)
        # Retry 0 is always a person's: a first run, `resume`, or `argo retry`, which begins to count anew in the same run.
        # Unless a person has cancelled this very flow before it came here.
        is_cancelled = cancel.take_over(RunDir(job.directory.path.parent), metaflow_internals.flow_id(), job.directory)
        resumed = current.retry_count == 0 and not is_cancelled
        try:
            with Heartbeat(lambda: told.printer.doing):
                result = supervise(
                    job,
                    launcher,
                    settings,
                    Outside(observe=told.observe, notice=told.notice, tell=told.tell),
                    retry_permanent=resumed,
                    lease_s=settings.cluster.lease_s,
                    # Metaflow kills a step's pod on Ctrl-C without a word to it: what is to stay must not need this process.
                    is_detached=settings.detaches and metaflow_internals.is_in_pod(),
                )
        finally:
            told.close()
        card.close(result.account)
        return result


def _on_cluster(job: Job, settings: Settings, notice: Callable[[str], None]) -> Launcher:
    """The cluster's launcher, with this run's code where the pods find it.

    Raises:
        ClusterError: no usable Kubernetes configuration, or the API refused.
        StorageError: the shared directory cannot be written.
    """
    from steps.flow import launchers
    from steps.protocol.rundir import RunDir
    from steps.pytorchjob.owner import find_owner
    from steps.pytorchjob.spec import Code

    run = RunDir(job.directory.path.parent)
    path, digest = metaflow_internals.archive(run)
    kube = launchers.connect(settings, notice=notice)
    spec = launchers.spec_of(
        settings,
        # The directory keeps its name through `resume`, whose runs have ids of their own.
        run="/".join(run.path.parts[-2:]),
        step=str(current.step_name),
        code=Code(str(path), digest),
        # A detached job outlives the pod, and so the batch job or workflow, that made it.
        owner=None if settings.detaches else find_owner(os.environ, kube.pod),
    )
    return launchers.cluster_launcher(kube, spec, notice=notice)


class pytorchjob(StepMutator, UserStepDecorator):
    """Step decorator: `current.pytorchjob`, a live card and retries of the launcher.

    `launcher_retries`: how often Metaflow starts the step again if its own process dies; the job is then adopted.
    `card_refresh_s`: each refresh is a process of Metaflow's that takes a core for a second, so not too often.
    """

    def init(self, *_: Any, launcher_retries: int = 2, card_refresh_s: int = 30, **__: Any) -> None:
        """Take the decorator's arguments (Metaflow calls this with those given)."""
        self._launcher_retries = launcher_retries
        self._card_refresh_s = card_refresh_s

    def mutate(self, mutable_step: Any) -> None:
        """Add @retry and @card, wherever the flow is read: run, resume, Argo, pods."""
        from steps.flow.cards.card_type import CARD_TYPE, register_card_type

        times = {"times": getattr(self, "_launcher_retries", 2), "minutes_between_retries": 0}
        mutable_step.add_decorator("retry", deco_kwargs=times)
        refresh = getattr(self, "_card_refresh_s", 30)
        register_card_type()
        kwargs = {"type": CARD_TYPE, "id": TRAIN_CARD, "refresh_interval": refresh}
        mutable_step.add_decorator("card", deco_kwargs=kwargs)

    def pre_step(self, step_name: str, flow: Any, inputs: Any = None) -> None:
        """Offer `current.pytorchjob`; the step's body then runs."""
        metaflow_internals.set_current("pytorchjob", JobHandle(current.card[TRAIN_CARD]))

    def post_step(self, step_name: str, flow: Any, exception: Exception | None = None) -> Exception | None:
        """Put errors into words; after a final one, keep Metaflow from starting the step again."""
        if isinstance(exception, FINAL):
            print(f"{exception.headline}:\n{exception}", file=sys.stderr, flush=True)
            sys.exit(metaflow_internals.EXIT_NO_RETRY)
        return FlowError(exception) if isinstance(exception, LoraFlowError) else exception
