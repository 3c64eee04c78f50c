"""Several samples in one row: best-fit-decreasing over their lengths, no sample cut. Also the order of the rows. Pure.

Called by `stage`. Knows lengths and indices only, never tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows of samples: row r holds `members[starts[r]:starts[r + 1]]`."""

    members: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1


def pack(lengths: npt.NDArray[np.int32], capacity: int) -> Packing:
    """Put each sample, longest first, into the row with the least room that still takes it.

    Rooms are kept as the set bits of one integer, so "the smallest room of at least n" is a shift and a lowest set bit.

    Raises:
        ValueError: a length outside 1..capacity.
    """
    if len(lengths) and not 0 < int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise ValueError(f"lengths must be within 1..{capacity}")
    row_of = np.empty(len(lengths), dtype=np.int32)
    with_room: dict[int, list[int]] = {}
    rooms, rows = 0, 0
    for sample in _in_python(np.argsort(-lengths, kind="stable")):
        length = int(lengths[sample])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            stack = with_room[room]
            row = stack.pop()
            if not stack:
                rooms ^= 1 << room
        else:
            room, row = capacity, rows
            rows += 1
        row_of[sample] = row
        left = room - length
        with_room.setdefault(left, []).append(row)
        rooms |= 1 << left
    starts = np.concatenate(([0], np.cumsum(np.bincount(row_of, minlength=rows))))
    return Packing(np.argsort(row_of, kind="stable"), starts)


def _in_python(numbers: npt.NDArray[np.int64]) -> Iterator[int]:
    """The numbers as Python's own, a few at a time: all at once they take four times the array's memory."""
    for first in range(0, len(numbers), 65_536):
        yield from numbers[first : first + 65_536].tolist()


def one_each(samples: int) -> Packing:
    """No packing: each sample is a row of its own."""
    return Packing(np.arange(samples), np.arange(samples + 1))


def count_steps(rows: int, *, max_steps: int, epochs: float, global_batch: int) -> int:
    """Optimizer steps of the whole run: `max_steps`, or what `epochs` passes over the rows take, rounded up."""
    return max_steps or max(1, math.ceil(epochs * rows / global_batch))


def run_order(rows: int, positions: int, seed: int) -> npt.NDArray[np.int64]:
    """The row at each position of the whole run: one permutation after another, the last one cut.

    Each is a function of (seed, epoch) alone. It sorts raw random words: their stream is numpy's promise over versions,
    which `Generator.permutation` is not.
    """
    order = np.empty(positions, dtype=np.int64)
    for epoch in range(math.ceil(positions / rows)):
        words = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(rows)
        part = order[epoch * rows : (epoch + 1) * rows]
        part[:] = np.argsort(words, kind="stable")[: len(part)]
    return order
