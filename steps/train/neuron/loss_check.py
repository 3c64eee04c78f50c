"""Is the loss that the library's model returns the summed cross entropy of its own logits? Asked once in each attempt.

The training divides the sum by the global batch's targets. A model whose loss function takes no notice of `reduction="sum"`
returns a mean, which is then divided again: gradients are too small by the number of targets, the loss curve falls all the same,
and nothing fails (optimum-neuron 0.4.5's Granite, whose 5.56 was reported as 0.2139). Used by `trainer`.

Each tensor-parallel rank has the logits of its own part of the vocabulary. It takes two numbers per target from them on the
device; the rest is numpy on the host, shared with nothing that the library computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steps.errors import ModelError
from steps.protocol.prepared import IGNORED_LABEL

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 0.02
"""Relative. Both come from the same logits in fp32; what is looked for is off by a factor of the number of targets."""
Parts = NDArray[np.float32]
"""(2, b, L - 1): logarithm of the summed exponentials over a rank's part of the vocabulary; the target's logit, 0 elsewhere."""


def parts_of(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """`Parts` of one tensor-parallel rank, on the device. `logits`: (b, L, V / ranks); `labels`: (b, L), not shifted."""
    import torch

    ahead, width = logits[:, :-1].float(), logits.shape[-1]
    place = labels[:, 1:] - rank * width
    is_here = (place >= 0) & (place < width)
    chosen = ahead.gather(-1, place.clamp(0, width - 1)[..., None])[..., 0]
    return torch.stack([ahead.logsumexp(-1), torch.where(is_here, chosen, torch.zeros_like(chosen))])


def summed_loss(parts: Sequence[Parts], labels: NDArray[np.int64]) -> float:
    """Summed cross entropy of the targets in `labels`, (b, L), from all ranks' parts in any order."""
    whole = np.stack(parts).astype(np.float64)
    loss = np.logaddexp.reduce(whole[:, 0], axis=0) - whole[:, 1].sum(axis=0)
    return math.fsum(loss[labels[:, 1:] != IGNORED_LABEL].tolist())


def require_sum(reported: float, parts: Sequence[Parts], labels: NDArray[np.int64]) -> None:
    """Refuse to train with a loss that is not the sum over the targets; logits that are no numbers are left to the loop's check.

    Raises:
        ModelError: it is another number.
    """
    targets = int((labels[:, 1:] != IGNORED_LABEL).sum())
    expected = summed_loss(parts, labels)
    if targets and math.isfinite(expected) and not math.isclose(reported, expected, rel_tol=TOLERANCE, abs_tol=1e-3):
        raise ModelError(
            f"the model's loss for the first micro-batch is {reported / targets:.4g} per target, its own logits give "
            f"{expected / targets:.4g} ({targets} targets): its loss function does not add up its targets as optimum-neuron "
            "0.4.5's Llama does, and gradients would be wrong; nothing was trained. Train this model with the torch backend"
        )
