"""Sums of gradients in an order that does not depend on the number of processes, so that their bits do not either.

Floating-point addition is not associative: (a+b)+c and a+(b+c) differ in the last bits. So the micro-batches of a step are
added along one fixed binary tree over their place in the global batch. With M = odd · 2^k micro-batches, runs of `odd`
neighbours are added one after the other, and these sums in pairs, pairs of pairs, and so on:

    M = 12, odd = 3     ((0+1+2) + (3+4+5))  +  ((6+7+8) + (9+10+11))
                        └──── rank 0 of 2 ┘     └──── rank 1 of 2 ───┘

Each rank holds neighbours, so 1, 2, 4, … processes compute subtrees of the same tree; `sum_over_ranks` adds the upper levels.
Used by `torch_backend`; knows nothing of models, only of flat tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


PIECE = 1 << 20
"""Values gathered at a time: with 64 ranks 256 MiB in fp32."""


def odd_part(count: int) -> int:
    """The largest odd divisor of a positive number."""
    return count // (count & -count)


class TreeSum:
    """One rank's subtree, added up as the micro-batches come; holds log2(micro-batches / odd) + 1 buffers.

    For each micro-batch: take `leaf()`, add the gradient to it, say `leaf_done()`. After the last one, `root()`.
    """

    def __init__(self, new_buffer: Callable[[], Tensor], *, leaves: int) -> None:
        self._new_buffer = new_buffer
        self._group = odd_part(leaves)
        self._in_group = 0
        self._current: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}
        """Finished left siblings by level, like the set bits of a binary counter."""
        self._free: list[Tensor] = []

    def leaf(self) -> Tensor:
        """The buffer to add the next micro-batch to; zero at the beginning of a run of neighbours."""
        if self._current is None:
            self._current = self._free.pop() if self._free else self._new_buffer()
            self._current.zero_()
        return self._current

    def leaf_done(self) -> None:
        """The micro-batch has been added to `leaf()`."""
        self._in_group += 1
        if self._current is None or self._in_group < self._group:
            return
        node, level = self._current, 0
        self._current, self._in_group = None, 0
        while (left := self._waiting.pop(level, None)) is not None:
            left.add_(node)
            self._free.append(node)
            node, level = left, level + 1
        self._waiting[level] = node

    def root(self) -> Tensor:
        """The sum of all leaves; ends this step. The buffer stays valid until the next `leaf()`."""
        (node,) = self._waiting.values()
        self._waiting.clear()
        self._free.append(node)
        return node


def sum_over_ranks(
    flat: Tensor,
    *,
    rank: int,
    world: int,
    exchange: Callable[[int, Tensor], Tensor],
    add_up: Callable[[Tensor], object],
    all_gather: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Add the ranks' subtrees in place; every rank ends with the same bits.

    A power of two: pairs at distance 1, 2, 4, … swap their sums (`exchange(partner, mine)` returns the partner's) and both add;
    a+b = b+a to the bit. `all_gather` ((n,) → (world, n)) is given where ranks cannot swap: then each adds up everyone's, a piece
    at a time, along the same tree. Any other world: `add_up`, a plain all-reduce, whose order and so whose last bits are its own.
    """
    if world & (world - 1):
        add_up(flat)
        return
    if all_gather is not None:
        for piece in flat.split(PIECE):
            piece.copy_(_sum_pairs(all_gather(piece)))
        return
    distance = 1
    while distance < world:
        flat.add_(exchange(rank ^ distance, flat))
        distance *= 2


def _sum_pairs(parts: Tensor) -> Tensor:
    """(world, n) → (n,)."""
    while len(parts) > 1:
        parts = parts[0::2] + parts[1::2]
    return parts[0]
