"""transformers' Trainer with our order of rows, our sums of gradients and our seeds; what it would do by itself with
checkpoints, logs, metrics and random state is switched off. Only `torch_backend` imports this module: it loads transformers.

What is overridden, in the order in which `Trainer.train` comes to it (transformers 4.57.6, trainer.py, `_inner_training_loop`):
get_train_dataloader → create_scheduler → _wrap_model → _load_optimizer_and_scheduler → per step: get_batch_samples,
training_step for each micro-batch, clipping and the optimizer as they are, _maybe_log_save_evaluate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from steps.train.loop.backend import Listener, StepDone
from steps.train.loop.feed import Feed, MicroBatch
from steps.train.loop.ranks import Ranks, peers_may_vanish
from steps.train.loop.rows import seed_of
from steps.train.loop.schedule import make_scheduler
from steps.train.loop.tree import TreeSum, sum_over_ranks
from steps.train.pytorch.model import TargetLoss, trainable
from steps.train.spec import TrainSpec


class Replica(torch.nn.Module):
    """The model as it is, under another name: so that accelerate does not wrap it in DistributedDataParallel.

    Gradients are summed in `training_step` (or by FSDP), and every rank starts from the same weights: DDP would only cost time.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        """The model's own."""
        return self.model(**inputs)


class Gradients:
    """The gradients of all trained parameters as views of one flat fp32 buffer, summed along the fixed tree.

    Its last two places hold the loss and a flag, so that they travel with the gradients and cost no message of their own.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], ranks: Ranks, *, accumulation: int) -> None:
        self._parameters = parameters
        self._ranks = ranks
        self._size = sum(parameter.numel() for parameter in parameters)
        self._views: dict[int, list[torch.Tensor]] = {}
        self._tree = TreeSum(self._new_buffer, leaves=accumulation)

    def _new_buffer(self) -> torch.Tensor:
        return torch.zeros(self._size + 2, dtype=torch.float32, device=self._parameters[0].device)

    def _attach(self, buffer: torch.Tensor) -> None:
        views = self._views.get(buffer.data_ptr())
        if views is None:
            parts = buffer[: self._size].split([parameter.numel() for parameter in self._parameters])
            views = [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]
            self._views[buffer.data_ptr()] = views
        for parameter, view in zip(self._parameters, views, strict=True):
            parameter.grad = view

    def add(self, loss: torch.Tensor) -> None:
        """Backward, into the tree."""
        buffer = self._tree.leaf()
        self._attach(buffer)
        loss.backward()
        buffer[-2] += loss.detach()
        self._tree.leaf_done()

    def combine(self, *, flag: bool) -> torch.Tensor:
        """Sum over all ranks into the parameters' `grad`; returns (loss, number of ranks with the flag) on the device."""
        root = self._tree.root()
        root[-1] = float(flag)
        sum_over_ranks(
            root,
            rank=self._ranks.rank,
            world=self._ranks.world,
            exchange=self._ranks.exchange,
            add_up=self._ranks.add_up,
        )
        self._attach(root)
        return root[-2:].clone()


@dataclass(frozen=True, slots=True)
class Course:
    """Where training stands, and who hears of it."""

    done: int
    """Steps done before this process began."""
    restore: Callable[[Any, Any], None] | None
    """Puts the saved state into (optimizer, scheduler); None at step 0."""
    listener: Listener
    stop_asked: Callable[[], bool]
    """Has this process been asked to stop?"""


class OrderedTrainer(Trainer):
    """Trainer over a `Feed`."""

    def __init__(
        self, model: Any, arguments: TrainingArguments, *, spec: TrainSpec, ranks: Ranks, feed: Feed, loss: TargetLoss
    ) -> None:
        super().__init__(model=model, args=arguments)
        self.remove_callback(PrinterCallback)
        self._spec, self._ranks, self._feed, self._loss = spec, ranks, feed, loss
        self._gradients: Gradients | None = None
        self._totals = torch.zeros(2)
        self._course: Course

    def follow(self, course: Course) -> None:
        """Train from where the course says, up to the last step or until its listener ends it."""
        self._course = course
        self.train()

    def get_train_dataloader(self) -> Any:
        """The micro-batches of this rank that are still to come."""
        return self._feed.from_step(self._course.done)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Ours, whose first step has a rate above zero."""
        self.lr_scheduler = make_scheduler(self.optimizer if optimizer is None else optimizer, self._spec)
        return self.lr_scheduler

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if self._spec.training.sharding == "ddp":
            parameters: Any = list(trainable(self.model).values())
            self._gradients = Gradients(parameters, self._ranks, accumulation=self._feed.slicing.accumulation)
        return Replica(model)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if self._course.restore is not None:
            self._course.restore(self.optimizer.optimizer, self.lr_scheduler)
        self.state.global_step = self._course.done

    def get_batch_samples(self, epoch_iterator: Iterator[MicroBatch], num_batches: int, device: Any) -> Any:
        """One step's micro-batches; Trainer would count their labels, which we know."""
        return [next(epoch_iterator) for _ in range(num_batches)], None

    def floating_point_ops(self, inputs: Any) -> int:
        """Trainer's estimate walks through all parameters at every micro-batch."""
        return 0

    def training_step(self, model: Any, inputs: MicroBatch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch; with the last of a step, the sum over all ranks."""
        model.train()
        torch.manual_seed(seed_of(self._spec.training.seed, inputs.step, inputs.micro))
        if self._gradients is None:
            return self._sharded_step(model, inputs)
        loss = self._loss(model, inputs.batch, self.args.device) / inputs.target_tokens
        self._gradients.add(loss)
        if inputs.is_last:
            self._totals = self._gradients.combine(flag=self._course.stop_asked())
        return loss.detach()

    def _sharded_step(self, model: Any, inputs: MicroBatch) -> torch.Tensor:
        """FSDP moves weights and gradients between the ranks by itself, within forward and backward."""
        self.model.set_requires_gradient_sync(inputs.is_last)
        with peers_may_vanish():
            loss = self._loss(model, inputs.batch, self.args.device) / inputs.target_tokens
            (loss * self._ranks.world).backward()  # FSDP averages over the ranks
        self._totals[0] += loss.detach().to(self._totals)
        if inputs.is_last:
            self._totals[1] = float(self._course.stop_asked())
            self._ranks.add_up(self._totals)
        return loss.detach()

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, learning_rate: float | None = None, **kwargs: Any
    ) -> None:
        """Called after each step, and once more at the end of an epoch."""
        step = self.state.global_step
        if step == self._told:
            return
        norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else torch.as_tensor(grad_norm)
        loss, asked, norm = torch.cat([self._totals, norm.detach().reshape(1).to(self._totals)]).tolist()
        self._totals = torch.zeros_like(self._totals)
        tokens, targets = self._feed.counts(step - 1)
        done = StepDone(step, loss, float(learning_rate or 0.0), norm, tokens, targets, asked > 0)
        self._told = step
        if self._course.listener.step_done(done):
            self.control.should_training_stop = True
        if self.args.report_to:
            self.log({"loss": done.loss, "grad_norm": done.grad_norm, "learning_rate": done.learning_rate})

    _told = -1


def training_arguments(spec: TrainSpec, *, accumulation: int, on_cpu: bool) -> TrainingArguments:
    """Trainer's own settings."""
    return TrainingArguments(
        output_dir=spec.directory,
        max_steps=spec.steps,
        per_device_train_batch_size=spec.training.micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=spec.training.learning_rate,
        weight_decay=spec.training.weight_decay,
        max_grad_norm=spec.training.max_grad_norm or math.inf,  # so that the norm is measured either way
        gradient_checkpointing=spec.training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=spec.training.seed,
        use_cpu=on_cpu,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(spec.report_to),
    )
