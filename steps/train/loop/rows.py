"""Which rows belong to which step, rank and micro-batch, and how rows become one batch. Pure: numpy in, numpy out.

Global step k uses positions [k·B, (k+1)·B) of the order that `prepare` fixed, whoever computes them, cut into B/micro_batch
micro-batches; each rank takes neighbouring ones. So resuming is exact, and does not depend on the number of processes.
Used by the backends; does not know what a model is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steps.errors import ConfigError, Problem
from steps.protocol.prepared import IGNORED_LABEL, PreparedRow

PAD_ID = 0
"""Any token would do: nothing attends to padding, and it has no loss."""

Ints = NDArray[np.integer[Any]]


class RowSource(Protocol):
    """Rows by number."""

    def __len__(self) -> int:
        """Number of rows."""

    def row(self, index: int) -> PreparedRow:
        """One row."""


@dataclass(frozen=True, slots=True)
class Slicing:
    """How the global batch is cut for one rank."""

    global_batch: int
    micro_batch: int
    world: int
    rank: int

    def __post_init__(self) -> None:
        per_pass = self.world * self.micro_batch
        if self.global_batch % per_pass:
            raise ConfigError(
                [
                    Problem(
                        "global_batch",
                        f"must be a multiple of processes × micro batch = {self.world} × {self.micro_batch} = {per_pass}, "
                        f"got {self.global_batch}; use another number of processes, or another --micro-batch",
                    )
                ]
            )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, over all ranks."""
        return self.global_batch // self.micro_batch

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on one rank."""
        return self.micro_batches // self.world

    @property
    def mine(self) -> range:
        """This rank's micro-batches, by their place in the global batch."""
        return range(self.rank * self.accumulation, (self.rank + 1) * self.accumulation)

    def positions(self, step: int, micro: int) -> range:
        """Positions in the order of the run that micro-batch `micro` of global step `step` (from 0) uses."""
        first = step * self.global_batch + micro * self.micro_batch
        return range(first, first + self.micro_batch)


def seed_of(seed: int, step: int, micro: int) -> int:
    """Seed of all random numbers of one micro-batch: by its place in the run, not by the rank that computes it. 63 bits."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows ready for a model, b rows padded on the right to the longest, L tokens."""

    input_ids: NDArray[np.int64]
    """(b, L)"""
    position_ids: NDArray[np.int64] | None
    """(b, L), starting again at each sample of a packed row; None for unpacked rows."""
    predict_at: NDArray[np.int64]
    """(T,) places in the flattened (b·L) from which a target is predicted."""
    targets: NDArray[np.int64]
    """(T,) the tokens that come next there."""
    lengths: tuple[tuple[int, ...], ...]
    """Per row, the lengths of its samples; padding not counted."""


def without_first_targets(row: PreparedRow) -> Ints:
    """A row's labels, with no loss on the first token of each sample: what stands before it is another sample."""
    masked = row.labels.copy()
    masked[np.cumsum(row.lengths) - row.lengths] = IGNORED_LABEL
    return masked


def collate(rows: Sequence[PreparedRow], *, packed: bool) -> Batch:
    """Put rows side by side."""
    width = max(len(row.input_ids) for row in rows)
    input_ids = np.full((len(rows), width), PAD_ID, dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED_LABEL, dtype=np.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.input_ids)] = row.input_ids
        labels[number, : len(row.input_ids)] = without_first_targets(row)
    ahead = np.full_like(labels, IGNORED_LABEL)
    ahead[:, :-1] = labels[:, 1:]
    predict_at = np.flatnonzero(ahead != IGNORED_LABEL)
    return Batch(
        input_ids=input_ids,
        position_ids=np.stack([_positions(row.lengths, width) for row in rows]) if packed else None,
        predict_at=predict_at,
        targets=ahead.reshape(-1)[predict_at],
        lengths=tuple(tuple(int(length) for length in row.lengths) for row in rows),
    )


def _positions(lengths: Ints, width: int) -> NDArray[np.int64]:
    """0, 1, 2, … for each sample; padding at the end is one more sample, so that nothing real attends to it."""
    padding = width - int(lengths.sum())
    return np.concatenate([np.arange(length, dtype=np.int64) for length in (*lengths, padding)])


class RowCounts:
    """Tokens and target tokens of rows, each row read once."""

    def __init__(self, rows: RowSource) -> None:
        self._rows = rows
        self._counts = np.full((len(rows), 2), -1, dtype=np.int64)

    def total(self, indices: Ints) -> tuple[int, int]:
        """(tokens, target tokens) of these rows."""
        for index in indices:
            if self._counts[index, 0] < 0:
                row = self._rows.row(int(index))
                self._counts[index] = len(row.input_ids), np.count_nonzero(without_first_targets(row) != IGNORED_LABEL)
        tokens, targets = self._counts[indices].sum(axis=0)
        return int(tokens), int(targets)
