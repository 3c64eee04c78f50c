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

    def keep(self, places: Sequence[int]) -> None:
        """Drop all other rows."""
        import torch

        rows = torch.tensor(list(places), dtype=torch.long, device=self.mask.device)
        self.cache.batch_select_indices(rows)
        self.tokens, self.mask, self.positions = self.tokens[rows], self.mask[rows], self.positions[rows]

    def append(self, tokens: Tensor) -> None:
        """One more token per row, of shape (rows,)."""
        import torch

        self.tokens, self.positions = tokens[:, None], self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)


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
