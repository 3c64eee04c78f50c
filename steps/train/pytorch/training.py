"""The loop of the torch backend: our order of rows, our seeds and our sums of gradients, then clipping, AdamW and the schedule.

Called by `backend`, which knows of checkpoints and files; what happens after a step is its listener's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from steps.settings.plan import Training
from steps.train.loop.backend import Listener, StepDone
from steps.train.loop.feed import Feed, MicroBatch
from steps.train.loop.ranks import Ranks, peers_may_vanish
from steps.train.loop.rows import seed_of
from steps.train.loop.schedule import make_scheduler
from steps.train.pytorch.gradients import Gradients, ShardedGradients, TreeGradients
from steps.train.pytorch.model import TargetLoss, trainable
from steps.train.spec import TrainSpec

UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)", re.IGNORECASE)
"""Names of parameters without weight decay: transformers' rule (`Trainer.get_decay_parameter_names`), which others train by."""


@dataclass(frozen=True, slots=True)
class Course:
    """Where training stands, and who hears of it."""

    done: int
    """Steps done before this process began."""
    listener: Listener
    stop_asked: Callable[[], bool]
    """Has this process been asked to stop?"""


class TrainingLoop:
    """A model with its optimizer and schedule."""

    def __init__(
        self, model: Any, loss: TargetLoss, *, spec: TrainSpec, ranks: Ranks, feed: Feed, place: torch.device
    ) -> None:
        self._model, self._loss, self._spec, self._feed, self._place = model, loss, spec, feed, place
        self._parameters: list[Any] = list(trainable(model).values())
        self.optimizer = make_optimizer(model, spec.training)
        self.scheduler = make_scheduler(self.optimizer, spec)
        self._gradients: Gradients = (
            ShardedGradients(model, ranks, place=place)
            if spec.training.sharding == "fsdp"
            else TreeGradients(self._parameters, ranks, accumulation=feed.slicing.accumulation)
        )

    def follow(self, course: Course) -> None:
        """Train from where the course says, up to the last step or until its listener ends it."""
        for step in range(course.done, self._spec.steps):
            rate = float(self.scheduler.get_last_lr()[0])
            with peers_may_vanish():
                loss, asked, norm = self._take_step(self._feed.of_step(step), course.stop_asked).cpu().tolist()
            tokens, targets = self._feed.counts(step)
            if course.listener.step_done(StepDone(step + 1, loss, rate, norm, tokens, targets, asked > 0)):
                return

    def _take_step(self, micro_batches: Iterable[MicroBatch], stop_asked: Callable[[], bool]) -> torch.Tensor:
        """One optimizer step; (loss, ranks asked to stop, gradient norm before clipping) on the device."""
        self._model.train()
        for micro in micro_batches:
            torch.manual_seed(seed_of(self._spec.training.seed, micro.step, micro.micro))
            loss = self._loss(self._model, micro.batch, self._place) / micro.target_tokens
            self._gradients.add(loss, is_last=micro.is_last)
        totals = self._gradients.combine(flag=stop_asked())
        norm: Any = clip_grad_norm_(self._parameters, self._spec.training.max_grad_norm or math.inf)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return torch.cat([totals, norm.detach().reshape(1).to(totals)])


def make_optimizer(model: Any, training: Training) -> torch.optim.AdamW:
    """AdamW over the trained parameters, in two groups: with weight decay, and without (biases and norms)."""
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
        for parameter in module.parameters()
    }
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in trainable(model).items():
        groups[id(parameter) not in norms and not UNDECAYED.search(name)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": training.weight_decay if decays else 0.0}
            for decays, parameters in groups.items()
        ],
        lr=training.learning_rate,
        fused=True,
    )
