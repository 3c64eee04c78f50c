"""Attention of one new token on a CPU: what makes generating quick there.

Used by `measure.load_model`. torch's own kernel takes longer for the one query of a generation step than for all the model's
matrix products of that step together, and wants keys and values copied for every query head that shares them. Two batched
products over what the cache holds say the same in a tenth of the time. Longer queries go to torch's kernel as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NAME = "sdpa_quick_steps"


def quicken_steps(model: Any) -> None:
    """Use it in a model on the CPU that takes attention from transformers' interface and would use torch's kernel; any other
    model stays as it is."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    takes_any = getattr(model, "_supports_attention_backend", False)
    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa" or not takes_any:
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As transformers calls it: query (rows, heads, queries, size), key and value (rows, key heads, places, size), mask True
    where a place is seen. Returns (rows, queries, heads, size)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, queries, size = query.shape
    if queries > 1 or (attention_mask is not None and attention_mask.dtype != torch.bool):
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found
    scale = options.get("scaling") or size**-0.5
    groups = query.reshape(rows, key.shape[1], -1, size)  # query heads with one key head, side by side
    scores = (groups @ key.transpose(-1, -2)).float() * scale
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[..., : key.shape[-2]], float("-inf"))
    mixed = scores.softmax(-1).to(value.dtype) @ value
    return mixed.reshape(rows, 1, heads, value.shape[-1]), None
