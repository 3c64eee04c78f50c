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
class FixedShape:
    """One shape for all batches of a run, for devices on which every new shape is another compilation."""

    rows: int
    width: int
    targets: int


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

    @property
    def target_count(self) -> int:
        """Targets that count; those that only fill up a fixed shape do not."""
        return int(np.count_nonzero(self.targets != IGNORED_LABEL))


def without_first_targets(row: PreparedRow) -> Ints:
    """A row's labels, with no loss on the first token of each sample: what stands before it is another sample."""
    masked = row.labels.copy()
    masked[np.cumsum(row.lengths) - row.lengths] = IGNORED_LABEL
    return masked


def collate(rows: Sequence[PreparedRow], *, packed: bool, shape: FixedShape | None = None) -> Batch:
    """Put rows side by side; padded to the longest, or to `shape`."""
    height, width = (shape.rows, shape.width) if shape else (len(rows), max(len(row.input_ids) for row in rows))
    input_ids = np.full((height, width), PAD_ID, dtype=np.int64)
    labels = np.full((height, width), IGNORED_LABEL, dtype=np.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.input_ids)] = row.input_ids
        labels[number, : len(row.input_ids)] = without_first_targets(row)
    ahead = np.full_like(labels, IGNORED_LABEL)
    ahead[:, :-1] = labels[:, 1:]
    predict_at = np.flatnonzero(ahead != IGNORED_LABEL)
    targets = ahead.reshape(-1)[predict_at]
    if shape:
        missing = (0, shape.targets - len(targets))
        predict_at, targets = np.pad(predict_at, missing), np.pad(targets, missing, constant_values=IGNORED_LABEL)
    lengths = tuple(tuple(int(length) for length in row.lengths) for row in rows) + ((),) * (height - len(rows))
    return Batch(
        input_ids=input_ids,
        position_ids=np.stack([token_positions(row, width) for row in lengths]) if packed else None,
        predict_at=predict_at,
        targets=targets,
        lengths=lengths,
    )


def token_positions(lengths: tuple[int, ...], width: int) -> NDArray[np.int64]:
    """0, 1, 2, … for each sample; padding at the end is one more sample, so that nothing real attends to it."""
    return np.concatenate([np.arange(length, dtype=np.int64) for length in (*lengths, width - sum(lengths))])


def sample_numbers(lengths: tuple[int, ...], width: int) -> NDArray[np.int64]:
    """(L,) which sample of its row a token belongs to, from 0; padding is the last one."""
    whole = (*lengths, width - sum(lengths))
    return np.repeat(np.arange(len(whole), dtype=np.int64), whole)


class RowCounts:
    """Tokens and target tokens of rows, each row read once."""

    def __init__(self, rows: RowSource) -> None:
        self._rows = rows
        self._counts = np.full((len(rows), 2), -1, dtype=np.int64)

    def total(self, indices: Ints) -> tuple[int, int]:
        """(tokens, target tokens) of these rows."""
        tokens, targets = self._read(indices).sum(axis=0)
        return int(tokens), int(targets)

    def most_targets(self, indices: Ints, *, together: int) -> int:
        """Of so many neighbours among these rows."""
        counts = self._read(indices)[:, 1]
        return int(np.add.reduceat(counts, np.arange(0, len(counts), together)).max(initial=0)) if len(counts) else 0

    def _read(self, indices: Ints) -> NDArray[np.int64]:
        for index in indices:
            if self._counts[index, 0] < 0:
                row = self._rows.row(int(index))
                self._counts[index] = len(row.input_ids), np.count_nonzero(without_first_targets(row) != IGNORED_LABEL)
        found: NDArray[np.int64] = self._counts[indices]
        return found
