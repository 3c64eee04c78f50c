"""Micro-batches as the tensors that optimum-neuron's models take, and as what its loop takes for a DataLoader.

Only `neuron_trainer` imports this module. A whole model is fed from the device, one micro-batch at a time; a pipeline from the
CPU, all micro-batches of a step at once, since it cuts and sends them itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch_xla.core.xla_model as xm

from steps.train.loop.feed import Feed, MicroBatch
from steps.train.loop.isolation import isolating_mask
from steps.train.loop.rows import Batch
from steps.train.neuron.batch import fix_shape
from steps.train.spec import TrainSpec

Inputs = dict[str, torch.Tensor]


class Rows:
    """What the library takes for a DataLoader."""

    sampler = None

    def __init__(self, feed: Feed, step: int, *, together: int) -> None:
        """`together`: micro-batches that make one batch of the library's."""
        self._micro_batches, self._together = feed.from_step(step), together

    def __len__(self) -> int:
        return len(self._micro_batches) // self._together

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self._micro_batches)


def inputs_of(batches: Sequence[Batch], spec: TrainSpec) -> Inputs:
    """On the CPU, micro-batches below each other: input_ids, labels; for packed rows position_ids and samples too."""
    fixed = [fix_shape(batch, rows=spec.training.micro_batch, length=spec.sequence_length) for batch in batches]
    names = ("input_ids", "labels", *(("position_ids", "samples") if spec.packed else ()))
    return {name: torch.from_numpy(np.concatenate([getattr(batch, name) for batch in fixed])) for name in names}


def for_model(inputs: Inputs) -> Inputs:
    """On the device."""
    return {name: tensor.to(xm.xla_device()) for name, tensor in inputs.items()}


def with_mask(inputs: Inputs, spec: TrainSpec) -> Inputs:
    """With the mask that isolates packed samples in place of their numbers."""
    if not spec.packed:
        return inputs
    dtype = torch.bfloat16 if spec.training.precision == "bf16" else torch.float32
    given = dict(inputs)
    return given | {"attention_mask": isolating_mask(given.pop("samples"), dtype)}


def for_stages(inputs: Inputs, spec: TrainSpec) -> Inputs:
    """Exactly the inputs for which the stages were traced (PIPELINE_INPUT_NAMES).

    Places are not among them: packed samples count on through their row. Only distances matter to rotary embeddings, and the
    mask lets nothing of another sample through. The mask of unpacked rows is never looked at.
    """
    given = (
        with_mask(inputs, spec) if spec.packed else inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}
    )
    return {name: given[name] for name in ("input_ids", "attention_mask", "labels")}
