"""Experiment trackers (`reporting.report_to`), fed with the workers' events in the process that launches the job.

One run of a tracker holds all attempts, for every backend, and its credentials stay out of the training processes. Each tracker
has a thread of its own: one that fails, hangs or is slow loses numbers, and neither stops nor slows the job.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from steps.protocol.events import Event

Write = Callable[[Mapping[str, float], int], object]
"""Takes metrics by name, and the step that they belong to."""
Opener = Callable[[], AbstractContextManager[Write]]
METRICS = {
    ("step", "loss"): "train/loss",
    ("step", "grad_norm"): "train/grad_norm",
    ("step", "lr"): "train/learning_rate",
    ("step", "tokens_per_s"): "train/tokens_per_s",
    ("validation", "loss"): "eval/loss",
}
"""(event, field) → metric, named as transformers' Trainer names them."""
WAITING = 10_000
"""Events that may wait for a slow tracker; those beyond are left out."""
LAST_WORDS_S = 10.0
"""For what still waits when the job has ended."""


class Tracker:
    """One tracker in its thread."""

    def __init__(self, name: str, opener: Opener, notice: Callable[[str], None]) -> None:
        self._name, self._opener, self._notice = name, opener, notice
        self._waiting: queue.Queue[Event | None] = queue.Queue(WAITING)
        self._failure = ""
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def observe(self, event: Event) -> None:
        """Take an event; never blocks."""
        self._say_failure()
        if metrics_of(event):
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(event)

    def close(self, *, patience_s: float = LAST_WORDS_S) -> None:
        """The job has ended: give the tracker a moment for the rest."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(patience_s)
        if self._thread.is_alive() and not self._failure:
            self._failure = f"{self._name} did not take the last numbers within {patience_s:.0f} s"
        self._say_failure()

    def _say_failure(self) -> None:
        """On the thread of the job: who hears notices need not expect another."""
        said, self._failure = self._failure, ""
        if said:
            self._notice(f"{said}; the training goes on, and every number is in the run directory's events")

    def _work(self) -> None:
        try:
            with self._opener() as write:
                while (event := self._waiting.get()) is not None:
                    write(metrics_of(event), event.step)
        except Exception as error:  # of a foreign library or its server: nothing that the job need hear of
            self._failure = f"{self._name} gets no more numbers ({type(error).__name__}: {str(error)[:200]})"


def metrics_of(event: Event) -> dict[str, float]:
    """The numbers of an event that trackers show."""
    found = {name: event.data.get(field) for (kind, field), name in METRICS.items() if kind == event.kind}
    return {name: float(value) for name, value in found.items() if value is not None}


def open_trackers(
    names: Sequence[str], *, folder: Path, title: str, key: str, notice: Callable[[str], None]
) -> list[Tracker]:
    """The trackers of a job. `folder`: the training's; `key`: the same for every launch of this training."""
    openers: dict[str, Opener] = {
        "tensorboard": lambda: tensorboard(folder),
        "wandb": lambda: wandb(folder, title=title, key=key),
        "mlflow": lambda: mlflow(title, key=key),
    }
    return [Tracker(name, openers[name], notice) for name in names]


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Write]:
    """Files below `runs` in the training's folder."""
    from tensorboard.summary import Writer

    writer = Writer(str(folder / "runs"))

    def write(metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    with contextlib.closing(writer):
        yield write


@contextlib.contextmanager
def wandb(folder: Path, *, title: str, key: str) -> Iterator[Write]:
    """One run, gone on with by later launches; project and credentials from its own variables."""
    import wandb as library

    run = library.init(dir=str(folder), name=title, id=key[:32], resume="allow")
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step")

    def write(metrics: Mapping[str, float], step: int) -> None:
        run.log({**metrics, "train/global_step": step})

    try:
        yield write
    finally:
        run.finish()


@contextlib.contextmanager
def mlflow(title: str, *, key: str) -> Iterator[Write]:
    """One run, gone on with by later launches; server, experiment and credentials from its own variables."""
    import mlflow as library

    begun = library.search_runs(filter_string=f"tags.training = '{key}'", max_results=1, output_format="list")
    known = {"run_id": begun[0].info.run_id} if begun else {"run_name": title, "tags": {"training": key}}
    with library.start_run(**known):
        yield library.log_metrics
