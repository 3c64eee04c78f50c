"""One stage of a replica whose layers are spread over processes: neuronx-distributed's NxDPPModel, mended.

Only `neuron_trainer` imports this module. All micro-batches of a step flow through the stages, forward and backward, in the
library's schedule (pipeline/model.py of v2.26); only the last stage knows a loss. What is mended:

- **Losses are sums.** The traced model takes the mean over each micro-batch's own targets, and has no input that says otherwise.
  The node of its graph is told to add up; `neuron_trainer` then divides the gradients by the targets of the global batch.
- **Dropout is seeded by micro-batch and stage.** The first step of a process sends one micro-batch ahead to learn shapes, which
  moves the device's random numbers on: a resumed training would drop other activations than an uninterrupted one.
- **Gradient checkpointing is on when asked for.** The model is traced in evaluation mode, in which its layers leave it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch_xla.core.xla_model as xm
from neuronx_distributed.utils.activation_checkpoint import apply_activation_checkpointing
from optimum.neuron.models.training.loss_utils import fixed_cross_entropy

from steps.errors import ModelError


class Stage:
    """This rank's share of the layers."""

    def __init__(self, model: Any, *, checkpointing: bool) -> None:
        """`model`: an NxDPPModel, traced and cut, on the device.

        Raises:
            ModelError: its loss is not where optimum-neuron 0.4.5 has it.
        """
        self._model = model
        self._seeds: Sequence[int] = ()
        _add_up_losses(model)
        if checkpointing:
            apply_activation_checkpointing(model)
        model.return_mb_loss = True
        for module in model.local_stage_modules:
            module.register_forward_pre_hook(self._seed)

    def _seed(self, *args: Any) -> None:
        if self._seeds and self._model.current_mb >= 0:  # below 0 while shapes are learned
            xm.set_rng_state(self._seeds[self._model.current_mb])

    def train(self, inputs: dict[str, torch.Tensor], seeds: Sequence[int]) -> list[torch.Tensor]:
        """Forward and backward of a step's micro-batches, of which each has a seed; their summed losses on the last stage.

        Gradients are those of the losses' mean over the micro-batches.
        """
        self._seeds = seeds
        losses = self._model.run_train(**inputs)
        self._seeds = ()
        return list(losses or ())

    def evaluate(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Summed losses of as many micro-batches as in training, on the last stage."""
        return list(self._model.run_eval(**inputs) or ())


def _add_up_losses(model: Any) -> None:
    found = [
        (module, node)
        for module in model.local_stage_modules
        for node in module.graph.nodes
        if node.op == "call_function" and node.target is fixed_cross_entropy
    ]
    if len(found) != int(model.is_last_stage()):
        raise ModelError(
            f"stage {model.pipeline_parallel_rank} of {model.pipeline_parallel_size} computes {len(found)} losses, expected one "
            "in the last and none before: this program is written for optimum-neuron 0.4.5; set launcher.pipeline_parallel to 1"
        )
    for module, node in found:
        node.update_kwarg("reduction", "sum")
        module.recompile()
