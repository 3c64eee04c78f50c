"""Gradients of one step, over all micro-batches and ranks, in the parameters' `grad`. Two ways, one for each sharding.

For each micro-batch `add` its loss; after the last one `combine`. Called by `training`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from steps.train.loop.ranks import Ranks
from steps.train.loop.tree import TreeSum, sum_over_ranks


class Gradients(Protocol):
    """What the loop asks of a way to add up."""

    def add(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Backward of one micro-batch; `is_last`: of this step on this rank."""

    def combine(self, *, flag: bool) -> torch.Tensor:
        """End the step; (summed loss, number of ranks with the flag) as a tensor on the device, the same on every rank."""


class TreeGradients:
    """All trained parameters' gradients as views of one flat fp32 buffer, summed along the fixed tree.

    Its last two places hold the loss and a flag, so that they travel with the gradients and cost no message of their own.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], ranks: Ranks, *, accumulation: int) -> None:
        self._parameters = parameters
        self._ranks = ranks
        self._size = sum(parameter.numel() for parameter in parameters)
        self._views: dict[torch.Tensor, list[torch.Tensor]] = {}
        """By buffer; tensors are told apart by identity."""
        self._tree = TreeSum(self._new_buffer, leaves=accumulation)

    def _new_buffer(self) -> torch.Tensor:
        return torch.zeros(self._size + 2, dtype=torch.float32, device=self._parameters[0].device)

    def _attach(self, buffer: torch.Tensor) -> None:
        views = self._views.get(buffer)
        if views is None:
            parts = buffer[: self._size].split([parameter.numel() for parameter in self._parameters])
            views = [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]
            self._views[buffer] = views
        for parameter, view in zip(self._parameters, views, strict=True):
            parameter.grad = view

    def add(self, loss: torch.Tensor, *, is_last: bool = False) -> None:
        """Backward, into the tree."""
        buffer = self._tree.leaf()
        self._attach(buffer)
        loss.backward()
        buffer[-2] += loss.detach()
        self._tree.leaf_done()

    def combine(self, *, flag: bool) -> torch.Tensor:
        """Sum over all ranks; see `tree`."""
        root = self._tree.root()
        root[-1] = float(flag)
        sum_over_ranks(
            root,
            rank=self._ranks.rank,
            world=self._ranks.world,
            exchange=self._ranks.exchange,
            add_up=self._ranks.add_up,
            all_gather=None if self._ranks.has_pairs else self._ranks.all_gather,
        )
        self._attach(root)
        return root[-2:].clone()


class ShardedGradients:
    """FSDP moves weights and gradients between the ranks by itself, within forward and backward."""

    def __init__(self, model: Any, ranks: Ranks, *, place: torch.device) -> None:
        self._model, self._ranks = model, ranks
        self._totals = torch.zeros(2, device=place)

    def add(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Backward; only the last one of a step is reduced over the ranks."""
        self._model.set_requires_gradient_sync(is_last)
        (loss * self._ranks.world).backward()  # FSDP averages over the ranks
        self._totals[0] += loss.detach()

    def combine(self, *, flag: bool) -> torch.Tensor:
        """Gradients are complete already."""
        totals, self._totals = self._totals, torch.zeros_like(self._totals)
        totals[1] = float(flag)
        self._ranks.add_up(totals)
        return totals
