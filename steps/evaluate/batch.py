"""Rows of token ids as tensors: padded left or right, and the prefix that all rows share, computed only once.

Used by `generate` and `loss`. A chat template's system turn and a task's instruction are the same in every row; on a CPU
computing them once instead of per row is a large share of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from steps.library_versions import cache_argument

if TYPE_CHECKING:
    import torch

SHORTEST_PREFIX = 8
"""Tokens; below this a pass of its own costs more than it saves."""


def shared_prefix(rows: Sequence[Sequence[int]], *, at_most: int) -> int:
    """Length of the prefix that all rows have in common; 0 if it is not worth a pass of its own."""
    first, last = min(map(list, rows)), max(map(list, rows))  # of sorted sequences the two ends differ earliest
    length = next(
        (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    length = min(length, at_most)
    return length if len(rows) > 1 and length >= SHORTEST_PREFIX else 0


def read_prefix(model: Any, prefix: Sequence[int], rows: int) -> Any:
    """A cache that holds the prefix, once per row."""
    import torch

    from steps.evaluate.cache import growing_cache

    cache = growing_cache(model)
    if prefix:
        model(
            input_ids=torch.tensor([list(prefix)], device=model.device),
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(model): cache},
        )
        cache.batch_repeat_interleave(rows)
    return cache


def pad(
    rows: Sequence[Sequence[int]], *, side: Literal["left", "right"], device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, mask) of shape (rows, longest row); padding is 0 in both."""
    import torch

    longest = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        tokens[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return tokens.to(device), mask.to(device)
