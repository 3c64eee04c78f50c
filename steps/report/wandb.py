"""Weights & Biases: one run over all attempts. A thin shell around its own client, which buffers on disk and sends by itself.

Its own step only rises, so ours is a value of its own (`train/step`), and steps done again after a failure are drawn again. Its
credentials and its mode (`WANDB_MODE=offline`, then `wandb sync`) come from the environment of the launching step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steps.job.job import Change
from steps.protocol.events import Event
from steps.protocol.records import identity_of
from steps.report.sink import Facts
from steps.report.tensorboard import numbers_of

INIT_S = 30
FINISH_S = 8


@dataclass(slots=True)
class WeightsAndBiases:
    """The sink."""

    facts: Facts
    name: str = "wandb"
    every_s: float = 10.0
    run: Any = None
    written: int = 0
    """Of the present batch."""

    def send(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
        """Hand over every number; the client sends them when it can."""
        if self.run is None:
            self.run = self._begin()
        for event in events[self.written :]:
            if numbers := numbers_of(event):
                self.run.log({**numbers, "train/step": event.step, "attempt": event.attempt})
            self.written += 1
        self.written = 0
        for change in changes:
            self.run.summary["state"] = change.kind

    def _begin(self) -> Any:
        import wandb

        settings = wandb.Settings(init_timeout=INIT_S, finish_timeout=FINISH_S, silent=True, console="off")
        run = wandb.init(
            id=identity_of(self.facts.key),
            resume="allow",
            name=self.facts.run.replace("/", "-"),
            config=dict(self.facts.values),
            dir=str(self.facts.folder),
            settings=settings,
        )
        run.define_metric("train/step")
        run.define_metric("*", step_metric="train/step")
        return run

    def close(self) -> None:
        """Let the client write what it still has."""
        if self.run is not None:
            self.run.finish()
