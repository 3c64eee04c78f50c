"""Batches of one fixed shape, since every other shape is another compilation. Pure: numpy in, numpy out.

Used by `neuron_trainer`. Padding, whether of a short row or of a missing one, has no label, so it is never trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steps.protocol.prepared import IGNORED_LABEL
from steps.train.loop.rows import PAD_ID, Batch, sample_numbers, seed_of, token_positions


@dataclass(frozen=True, slots=True)
class FixedBatch:
    """b rows of L tokens, for every batch of a training."""

    input_ids: NDArray[np.int64]
    """(b, L)"""
    labels: NDArray[np.int64]
    """(b, L), not shifted; IGNORED_LABEL on prompts, padding and the first token of each sample."""
    position_ids: NDArray[np.int64]
    """(b, L), starting again at each sample."""
    samples: NDArray[np.int64]
    """(b, L), which sample of its row a token belongs to, from 0; padding is the last one."""


def fix_shape(batch: Batch, *, rows: int, length: int) -> FixedBatch:
    """Pad a batch of `rows.collate` on the right and below."""
    found_rows, width = batch.input_ids.shape
    input_ids = np.full((rows, length), PAD_ID, dtype=np.int64)
    input_ids[:found_rows, :width] = batch.input_ids
    # A target at place p of the flattened (b, width) batch is the token after p, in the same row.
    labels = np.full((rows, length), IGNORED_LABEL, dtype=np.int64)
    labels[batch.predict_at // width, batch.predict_at % width + 1] = batch.targets
    lengths = [*batch.lengths, *[()] * (rows - found_rows)]
    return FixedBatch(
        input_ids=input_ids,
        labels=labels,
        position_ids=np.stack([token_positions(row, length) for row in lengths]),
        samples=np.stack([sample_numbers(row, length) for row in lengths]),
    )


def device_seed(seed: int, step: int, micro: int, *, sequence_part: int, stage: int = 0) -> int:
    """Seed of the device's random numbers for one micro-batch, 56 bits.

    torch_xla moves its seed on at every graph, so a restored one drifts: it is set anew for each micro-batch instead, by the
    micro-batch's place in the run. Under sequence parallel each tensor-parallel rank drops other activations (`sequence_part`
    is its rank); without it the group must drop the same ones (0). Each stage of a pipeline drops others.
    """
    return seed_of(seed, step, micro * 4096 + stage * 64 + sequence_part) & ((1 << 56) - 1)
