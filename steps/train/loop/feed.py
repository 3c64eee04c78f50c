"""The micro-batches of one rank, step after step, and the counts that its losses are divided by.

Used by the backends. Every rank can read all rows and the order, so the counts of the whole global batch need no message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steps.errors import DataError
from steps.protocol.handover import ROWS, HeldOutLoss
from steps.protocol.prepared import PreparedRows, prepare_again
from steps.train.loop.ranks import Ranks
from steps.train.loop.rows import Batch, FixedShape, RowCounts, Slicing, collate
from steps.train.spec import TrainSpec

TARGETS_STEP = 128
"""Fixed numbers of targets are multiples of it."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass."""

    step: int
    """Global step, from 0."""
    micro: int
    """Place in the global batch."""
    batch: Batch
    target_tokens: int
    """Of the whole global batch: the loss is divided by it."""
    is_last: bool
    """The last of its step on this rank."""


class Feed:
    """Micro-batches by step."""

    def __init__(self, prepared: PreparedRows, spec: TrainSpec, ranks: Ranks) -> None:
        self._rows, self._held_out, self._order = prepared.rows, prepared.validation, prepared.order
        self._steps, self._packed = spec.steps, spec.packed
        self._validation_rows = min(spec.validation_rows, len(prepared.validation))
        self.slicing = Slicing(spec.training.global_batch, spec.training.micro_batch, ranks.world, ranks.rank)
        self._row_counts = RowCounts(prepared.rows)
        self._shape: FixedShape | None = None
        if prepared.record.digest != spec.prepared_digest:
            raise DataError(
                f"{spec.prepared_path} holds data {prepared.record.digest[:12]}, this training was planned on "
                f"{spec.prepared_digest[:12]}: it was prepared again; start the train step again"
            )
        needed = spec.steps * spec.training.global_batch
        if len(self._order) < needed:
            raise DataError(
                f"{spec.prepared_path}: the order holds {len(self._order)} rows, {spec.steps} steps of "
                f"{spec.training.global_batch} need {needed}; {prepare_again(Path(spec.prepared_path))}"
            )

    def fix_shape(self, width: int) -> FixedShape:
        """From now on all batches have one shape: (micro batch, `width`), and as many targets as the fullest one has."""
        size = self.slicing.micro_batch
        trained = self._order[: self._steps * self.slicing.global_batch]
        held_out = np.arange(self._validation_rows)
        most = max(
            self._row_counts.most_targets(trained, together=size),
            RowCounts(self._held_out).most_targets(held_out, together=size),
            1,
        )
        self._shape = FixedShape(size, width, math.ceil(most / TARGETS_STEP) * TARGETS_STEP)
        return self._shape

    def counts(self, step: int) -> tuple[int, int]:
        """(tokens, target tokens) of the global batch of a step (from 0)."""
        size = self.slicing.global_batch
        return self._row_counts.total(self._order[step * size : (step + 1) * size])

    def of_step(self, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of one step, in order."""
        return (self.micro_batch(step, micro) for micro in self.slicing.mine)

    def from_step(self, step: int) -> MicroBatches:
        """This rank's micro-batches from a step on, to the end of the run."""
        return MicroBatches(self, step)

    def micro_batch(self, step: int, micro: int) -> MicroBatch:
        """One micro-batch, by its place in the run."""
        picked = self._order[self.slicing.positions(step, micro)]
        batch = collate([self._rows.row(int(index)) for index in picked], packed=self._packed, shape=self._shape)
        targets = self.counts(step)[1]
        return MicroBatch(step, micro, batch, max(targets, 1), is_last=micro == self.slicing.mine[-1])

    def validation_batches(self) -> list[Batch]:
        """This rank's share of the held-out rows; every rank gets as many batches, some of them twice (`share_of`)."""
        size, world = self.slicing.micro_batch, self.slicing.world
        whole = math.ceil(self._validation_rows / size)
        share = math.ceil(whole / world)
        mine = (min(self.slicing.rank * share + number, whole - 1) for number in range(share))
        return [
            collate(
                [self._held_out.row(index) for index in range(at * size, min((at + 1) * size, self._validation_rows))],
                packed=False,
                shape=self._shape,
            )
            for at in mine
        ]

    @property
    def validation_count(self) -> int:
        """Batches of held-out rows, over all ranks, each counted once."""
        return math.ceil(self._validation_rows / self.slicing.micro_batch)

    def head_of(self, sums: Sequence[tuple[float, int]]) -> HeldOutLoss | None:
        """Of the first rows, from (summed loss, targets) of each validation batch."""
        size = self.slicing.micro_batch
        first = sums[: math.ceil(ROWS / size)]
        targets = sum(count for _, count in first)
        rows = min(len(first) * size, self._validation_rows)
        return HeldOutLoss(rows, math.fsum(loss for loss, _ in first) / targets) if targets else None


class MicroBatches:
    """What a library takes for a DataLoader: it has a length and can be iterated."""

    def __init__(self, feed: Feed, step: int) -> None:
        self._feed, self._step = feed, step

    def __len__(self) -> int:
        return (self._feed._steps - self._step) * self._feed.slicing.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self._step, self._feed._steps):
            yield from self._feed.of_step(step)
