"""Our own generation step: a prefix that all rows share is read once, rows that ended are dropped.

Used by `generate` where `ways` has shown that it says what transformers' `generate` says. The state is one row per answer that
goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steps.evaluate.batch import pad, read_prefix, shared_prefix
from steps.library_versions import cache_argument

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class State:
    """What the next forward pass reads."""

    tokens: Tensor
    """(rows, tokens to read)"""
    mask: Tensor
    """(rows, all tokens so far): 0 where there is padding."""
    positions: Tensor
    """(rows, tokens to read)"""
    cache: Any

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Drop all rows but those at these places, given in ascending order; the order in which they stand from now on."""
        import torch

        order = filled(kept)
        rows = torch.tensor(order, dtype=torch.long, device=self.mask.device)
        holes = torch.tensor(
            [place for place, row in enumerate(order) if row != place], dtype=torch.long, device=rows.device
        )
        for layer in self.cache.layers:
            layer.keep(len(order), holes, rows[holes])
        self.tokens, self.mask, self.positions = self.tokens[rows], self.mask[rows], self.positions[rows]
        return order

    def append(self, tokens: Tensor) -> None:
        """One more token per row, of shape (rows,)."""
        import torch

        self.tokens, self.positions = tokens[:, None], self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)


def filled(kept: Sequence[int]) -> list[int]:
    """The rows that are kept, in ascending order, as they will stand: the last ones where others have left."""
    count = len(kept)
    staying, movers = {row for row in kept if row < count}, iter([row for row in kept if row >= count])
    return [place if place in staying else next(movers) for place in range(count)]


def begin(model: Any, prompts: Sequence[Sequence[int]]) -> State:
    """The prompts, padded on the left; what all of them begin with is read already."""
    import torch

    shared = shared_prefix(prompts, at_most=min(map(len, prompts)) - 1)
    cache = read_prefix(model, prompts[0][:shared], len(prompts))
    tokens, own = pad([prompt[shared:] for prompt in prompts], side="left", device=model.device)
    mask = torch.cat([own.new_ones(len(prompts), shared), own], dim=1)
    return State(tokens, mask, (own.cumsum(-1) - 1).clamp(min=0) + shared, cache)


def next_logits(model: Any, state: State) -> Tensor:
    """Logits of the next token, (rows, vocabulary)."""
    output = model(
        input_ids=state.tokens,
        attention_mask=state.mask,
        position_ids=state.positions,
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(model): state.cache},
    )
    logits: Tensor = output.logits[:, -1]
    return logits
