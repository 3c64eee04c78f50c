"""Causal attention within each sample of a packed row, one sample after the other. Used by `torch_model`.

The usual way is one attention over the whole row under a block-diagonal mask: most of its work is masked away (a row of 1,024
tokens with samples of 150 computes seven times as many scores as it needs), and a mask or a cache too many lets samples see
each other in silence. Here a sample is all that the kernel is given. `sample_lengths` is an argument of the model's forward,
which models of these types hand on to every attention layer; without it, rows are one sample each, padded on the right.

Where every shape is a compilation, `isolation`, the usual mask of one shape for all rows, is handed on instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "by_sample"
PLAIN_CAUSAL = frozenset({"llama", "mistral", "qwen2", "qwen3", "granite"})
"""model_type values whose attention is causal softmax and no more: no soft cap, no sinks; a sliding window is looked at apart."""


def is_plain(config: Mapping[str, Any], *, sequence_length: int) -> bool:
    """Whether a model's attention, by its config.json, is plain causal over rows of this length."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return config.get("model_type") in PLAIN_CAUSAL and not (window and window < sequence_length)


def choose_attention(config: Any, *, sequence_length: int) -> str | None:
    """The `attn_implementation` for a model: ours where the model's attention is plain, None where transformers is to choose."""
    if not is_plain(config.to_dict(), sequence_length=sequence_length):
        return None
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend_by_sample)
    return NAME


def attend_by_sample(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sample_lengths: tuple[tuple[int, ...], ...] | None = None,
    isolation: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query (b, heads, L, d), key and value (b, key heads, L, d) → (b, L, heads, d)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from steps.train.loop.device import COMPILED

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=True)

    if query.device.type in COMPILED:  # its kernel wants as many heads of keys as of queries
        copies = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    if isolation is not None:
        masked = scaled_dot_product_attention(
            query, key, value, attn_mask=isolation, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
        return masked.transpose(1, 2).contiguous(), None
    if sample_lengths is None:
        return attend(query, key, value).transpose(1, 2).contiguous(), None
    rows = []
    for number, lengths in enumerate(sample_lengths):
        whole = [tensor[number : number + 1] for tensor in (query, key, value)]
        cuts = [*lengths, padding] if (padding := query.shape[2] - sum(lengths)) else list(lengths)
        samples = zip(*(tensor.split(cuts, dim=2) for tensor in whole), strict=True)
        rows.append(torch.cat([attend(*sample) for sample in samples], dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None
