"""The library's loss is held against its logits, whole or cut over tensor-parallel ranks."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from steps.errors import ModelError
from steps.protocol.prepared import IGNORED_LABEL
from steps.train.neuron.loss_check import Parts, parts_of, require_sum

VOCABULARY = 24


def make_batch(ranks: int, dtype: torch.dtype = torch.float32) -> tuple[list[Parts], torch.Tensor, float, int]:
    """All ranks' parts of two rows of nine tokens, their labels, the summed loss by torch, and how many targets there are."""
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(2, 9, VOCABULARY, generator=generator)).to(dtype)
    labels = torch.randint(VOCABULARY, (2, 9), generator=generator)
    labels[0, :4] = labels[1, 6:] = IGNORED_LABEL
    summed = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    shards = enumerate(logits.chunk(ranks, dim=-1))
    parts = [parts_of(shard, labels, rank).numpy() for rank, shard in shards]
    return parts, labels, summed.item(), int((labels[:, 1:] != IGNORED_LABEL).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_the_sum_over_the_targets_passes(ranks: int, dtype: torch.dtype) -> None:
    parts, labels, summed, _ = make_batch(ranks, dtype)
    require_sum(summed, parts, labels.numpy())
    require_sum(summed * 1.01, parts[::-1], labels.numpy())


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_mean_is_refused_with_both_numbers(ranks: int) -> None:
    parts, labels, summed, targets = make_batch(ranks)
    words = (
        rf"is {summed / targets**2:.4g} per target, its own logits give {summed / targets:.4g} \({targets} targets\)"
    )
    with pytest.raises(ModelError, match=words):
        require_sum(summed / targets, parts, labels.numpy())


@pytest.mark.parametrize("reported", [float("nan"), 0.0])
def test_what_is_no_loss_is_refused(reported: float) -> None:
    parts, labels, _, _ = make_batch(1)
    with pytest.raises(ModelError, match="does not add up its targets"):
        require_sum(reported, parts, labels.numpy())


def test_a_micro_batch_without_targets_says_nothing() -> None:
    parts, labels, _, _ = make_batch(1)
    require_sum(0.0, parts, torch.full_like(labels, IGNORED_LABEL).numpy())
