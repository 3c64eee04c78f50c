"""optimum-neuron's trainer with our rows, our seeds, our saves, and its faults mended. Only `neuron_backend` imports this
module: it loads torch_xla and the Neuron libraries. Written for optimum-neuron 0.4.5 (trainers/transformers.py).

What is mended, each found by running the library, each guarded at run time:

- **The schedule reaches the optimizer.** The scheduler is made on torch's AdamW; accelerate's wrapper then gives ZeRO-1's
  optimizer new parameter groups (accelerate/optimizer.py:69), and the scheduler goes on writing to the old ones. With any
  warm-up the rate stays 0 for ever, while the log shows the schedule. `setup_training` links them; `_require_rate` checks.
- **The first step has a rate above zero**, as in `loop/schedule.py`.
- **Replicated LoRA gradients are whole.** Under sequence parallel a rank sees its slice of the sequence, so gradients of
  weights that are not sharded are sums over that slice; the library adds up those of norms only (accelerate/optimizer.py:40)
  and looks at `grad`, while ZeRO-1 in bf16 keeps `main_grad`. `_add_up_replicated` sums both kinds; the guard before each save
  (`neuron_replicas`) compares the copies.
- **bf16 without sequence parallel** is refused (`neuron_refusals.check_sequence_parallel`).
- **Losses are divided by the targets of the global batch**, not of this replica's part of it; so they have to be sums, which the
  first micro-batch of each attempt shows (`loss_check`).
- **Padding has no label, packed samples do not see each other** (`neuron_batch`, `neuron_inputs`).
- **Weights decay on several stages too.** There the library looks for names without PEFT's prefix among names with it, and would
  leave every weight undecayed. `get_decay_parameter_names` knows both; the rest of pipelines is in `neuron_pipeline`.

What it would do by itself with data, logs, saves, metrics files and the hub is left out: `train` never goes through it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_xla.core.xla_model as xm
from neuronx_distributed.parallel_layers import parallel_state
from optimum.neuron import NeuronTrainer
from transformers import PrinterCallback, TrainerCallback

from steps.errors import ConfigError, Problem
from steps.train.loop.backend import Listener, StepDone
from steps.train.loop.feed import Feed, MicroBatch
from steps.train.loop.ranks import Ranks
from steps.train.loop.rows import Batch
from steps.train.loop.schedule import follow
from steps.train.neuron.batch import device_seed
from steps.train.neuron.inputs import Inputs, Rows, for_model, for_stages, inputs_of, with_mask
from steps.train.neuron.loss_check import Parts, parts_of, require_sum
from steps.train.neuron.model import ADAPTER_NAME, BASE_PREFIX, gradient, trainable
from steps.train.neuron.pipeline import Stage
from steps.train.neuron.ranks import by_replica
from steps.train.neuron.replicas import require_rate
from steps.train.neuron.state import OptimizerState, Place
from steps.train.spec import TrainSpec


@dataclass(frozen=True, slots=True)
class Course:
    """Where training stands, and who hears of it."""

    done: int
    """Steps done before this process began."""
    restore: Callable[[OptimizerState, Any], None] | None
    """Puts the saved state into (optimizer, scheduler); None at step 0."""
    listener: Listener
    stop_asked: Callable[[], bool]
    """Has this process been asked to stop?"""


def place_of_rank() -> Place:
    """This rank's coordinates, once the libraries have laid out the processes."""
    return Place(
        dp=parallel_state.get_data_parallel_rank(),
        tp=parallel_state.get_tensor_model_parallel_rank(),
        data_parallel=parallel_state.get_data_parallel_size(),
        pp=parallel_state.get_pipeline_model_parallel_rank(),
    )


def require_place(expected: Place) -> None:
    """Our slices of the data and names of files rest on the order in which the libraries lay out ranks.

    Raises:
        ConfigError: they laid them out otherwise.
    """
    found = place_of_rank()
    if found != expected:
        raise ConfigError(
            [Problem("launcher.tensor_parallel", f"expected this rank at {expected}, the library says {found}")]
        )


class _Hooks(TrainerCallback):
    """Calls the trainer back at two points of its loop."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Gradients of this rank are complete, nothing is reduced yet."""
        self._trainer._finish_gradients()
        self._trainer._require_rate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Optimizer and scheduler have stepped."""
        control.should_training_stop = self._trainer._tell()
        return control


class LoraTrainer(NeuronTrainer):
    """The library's loop over a `Feed`."""

    def __init__(self, model: Any, arguments: Any, *, spec: TrainSpec, ranks: Ranks, feed: Feed) -> None:
        super().__init__(model=model, args=arguments)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Hooks(self))
        self._spec, self._ranks, self._feed = spec, ranks, feed
        self._sequence_parallel = bool(self.trn_config.sequence_parallel_enabled)
        self._stage: Stage | None = None
        self._together = feed.slicing.accumulation if spec.pipeline_parallel > 1 else 1
        self._coming: deque[MicroBatch] = deque()
        self._factor = 1.0
        self._losses: list[torch.Tensor] = []
        self._rates: list[float] = []
        self._is_checked = spec.pipeline_parallel > 1  # `Stage` has looked for the loss in the traced graph
        self._course: Course

    def follow(self, course: Course) -> None:
        """Train from where the course says, up to the last step or until its listener ends it."""
        self._course = course
        self._train()  # `train` would ask the hub for compiled graphs first, and raise when it is out of reach

    @property
    def state_of_optimizer(self) -> OptimizerState:
        """Moments, master weights and schedule of this rank."""
        names = {id(parameter): name.replace(ADAPTER_NAME, "") for name, parameter in trainable(self.model).items()}
        return OptimizerState(self.optimizer.optimizer, names, place_of_rank())

    def get_train_dataloader(self) -> Any:
        """The micro-batches of this replica that are still to come."""
        return Rows(self._feed, self._course.done, together=self._together)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """As a model and as a stage of it name them."""
        names: list[str] = super().get_decay_parameter_names(model)
        return [*names, *(name.removeprefix(BASE_PREFIX) for name in names)]

    def setup_training(self, *args: Any, **kwargs: Any) -> None:
        """Model on the device, optimizer and scheduler made: link them, and take over a checkpoint's state."""
        super().setup_training(*args, **kwargs)
        self.lr_scheduler.optimizer = self.optimizer.optimizer
        follow(self.lr_scheduler, self._spec)
        if self._spec.pipeline_parallel > 1:
            self._stage = Stage(self.model, checkpointing=self._spec.training.gradient_checkpointing)
        if self._course.restore is not None:
            self._course.restore(self.state_of_optimizer, self.lr_scheduler)
            self.optimizer.zero_grad()
        self.state.global_step = self._course.done
        xm.mark_step()

    def get_batch_samples(self, epoch_iterator: Iterator[MicroBatch], num_batches: int, **kwargs: Any) -> Any:
        """One step's micro-batches where the model takes them; their labels are counted in the feed."""
        self._coming = deque(next(epoch_iterator) for _ in range(num_batches * self._together))
        if self._stage is not None:
            return [for_stages(inputs_of([micro.batch for micro in self._coming], self._spec), self._spec)], None
        return [for_model(inputs_of([micro.batch], self._spec)) for micro in self._coming], None

    def _forward(self, inputs: Inputs) -> Any:
        """The model's output; its loss is a sum."""
        return self.model(**with_mask(inputs, self._spec), reduction="sum")

    def _require_sum(self, inputs: Inputs, micro: MicroBatch) -> None:
        """Hold the library's loss of the first micro-batch against its logits; a precompilation only collects the graph."""
        loss, parts = self._looked_at(inputs)
        self._is_checked = True
        everyone = self._ranks.gather(parts)
        if not self._spec.graphs_only:
            first = self._ranks.rank // self._spec.tensor_parallel * self._spec.tensor_parallel
            labels = inputs_of([micro.batch], self._spec)["labels"].numpy()
            require_sum(loss, everyone[first : first + self._spec.tensor_parallel], labels)

    def _looked_at(self, inputs: Inputs) -> tuple[float, Parts]:
        """Summed loss and logits' parts of a micro-batch, nothing trained: one graph, for validation and the first check."""
        self.model.eval()
        with torch.no_grad():
            out = self._forward(inputs)
            parts = parts_of(out.logits, inputs["labels"], place_of_rank().tp)
        xm.mark_step()
        self.model.train()
        return float(out.loss.cpu()), parts.cpu().numpy()

    def _seed_of(self, micro: MicroBatch) -> int:
        place = place_of_rank()
        part = place.tp if self._sequence_parallel else 0
        return device_seed(self._spec.training.seed, micro.step, micro.micro, sequence_part=part, stage=place.pp)

    def training_step(self, model: Any, inputs: Inputs, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch, or of all of the step that flow through a pipeline."""
        micro, place = self._coming[0], place_of_rank()
        if self._stage is not None:
            self._losses = self._stage.train(inputs, [self._seed_of(micro) for micro in self._coming])
            self._factor = place.data_parallel * len(self._coming) / micro.target_tokens
            return torch.zeros((), device=xm.xla_device())
        self._coming.popleft()
        if not self._is_checked:
            self._require_sum(inputs, micro)
        xm.set_rng_state(self._seed_of(micro))
        summed = self._forward(inputs).loss
        self.accelerator.backward(
            summed * (place.data_parallel / micro.target_tokens)
        )  # replicas' gradients are averaged
        self._losses.append(summed.detach())
        return self._losses[-1]

    def _finish_gradients(self) -> None:
        """Of this rank, for the whole global batch."""
        if self._stage is not None:
            for parameter in trainable(self.model).values():
                gradient(parameter).mul_(self._factor)
        if self._sequence_parallel:
            self._add_up_replicated()

    def _add_up_replicated(self) -> None:
        found = [
            gradient(parameter)
            for parameter in trainable(self.model).values()
            if not getattr(parameter, "tensor_model_parallel", False)
        ]
        groups = parallel_state.get_tensor_model_parallel_replica_groups()
        if found:
            xm.all_reduce(xm.REDUCE_SUM, found, groups=groups, pin_layout=False)  # in place

    def _require_rate(self) -> None:
        optimizer = self.optimizer.optimizer
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        scheduled = [float(rate) for rate in self.lr_scheduler.get_last_lr()]
        require_rate(self._rates, scheduled, step=self.state.global_step + 1)

    def _tell(self) -> bool:
        """Report the step that has just been done; True ends training."""
        xm.mark_step()
        norm = float(self.grad_norm.detach().cpu())
        losses = torch.stack(self._losses).cpu().double().sum().item() if self._losses else 0.0
        self._losses.clear()
        step = self.state.global_step
        everyone = self._ranks.gather((losses, self._course.stop_asked()))
        tokens, targets = self._feed.counts(step - 1)
        loss = sum(loss for loss, _ in by_replica(everyone, self._spec)) / max(targets, 1)
        stop = any(asked for _, asked in everyone)
        return self._course.listener.step_done(StepDone(step, loss, self._rates[0], norm, tokens, targets, stop))

    def validation_sums(self) -> list[tuple[float, int]]:
        """(summed loss, targets) of this replica's held-out batches; on a pipeline only the last stage knows them."""
        batches = self._feed.validation_batches()
        if self._stage is not None:
            losses = self._losses_through(self._stage, batches)
        else:
            losses = [self._looked_at(for_model(inputs_of([batch], self._spec)))[0] for batch in batches]
        return [(loss, len(batch.targets)) for loss, batch in zip(losses, batches, strict=False)]

    def _losses_through(self, stage: Stage, batches: Sequence[Batch]) -> list[float]:
        """As many at once as in training: another number would not fit the stages; the last batch fills up."""
        found: list[float] = []
        for first in range(0, len(batches), self._together):
            group = [batches[min(first + number, len(batches) - 1)] for number in range(self._together)]
            losses = stage.evaluate(for_stages(inputs_of(group, self._spec), self._spec))
            found += [float(loss.cpu()) for loss in losses]
        return found

    def report_and_save_summary_metrics(self) -> None:
        """Every rank would write one file of the same name; the events say more."""
