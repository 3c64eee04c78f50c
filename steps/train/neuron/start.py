"""The adapter's start, drawn as PEFT draws it: for one seed the neuron and the torch backend begin with the same weights.

Used by `model`. The library draws each rank's part by itself: other numbers for every layout, another scale for o_proj
and down_proj, since it takes the fan-in of the part. Here each rank draws the whole adapter in PEFT's order, and keeps its share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steps.train.neuron.consolidate import FUSED, AdapterShape, head_order

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def draw_start(config: Mapping[str, Any], targets: Sequence[str], *, rank: int, seed: int) -> dict[str, Tensor]:
    """What PEFT draws for a Llama-like model, by module (`model.layers.0.mlp.up_proj`), in the order in which it meets them.

    (r, inputs) each, lora_A; of embed_tokens (hidden size, r), lora_embedding_B. The other matrix of a module begins as zeros.
    """
    import torch

    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if "embed_tokens" in targets:
            found["model.embed_tokens"] = _draw_embedding(int(config["vocab_size"]), int(config["hidden_size"]), rank)
        sizes = _sizes(config)
        for layer in range(int(config["num_hidden_layers"])):
            for name, (inputs, outputs) in sizes.items():
                if name in targets:
                    part = "self_attn" if name in ATTENTION else "mlp"
                    found[f"model.layers.{layer}.{part}.{name}"] = _draw_linear(inputs, outputs, rank)
    return found


def _sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a decoder layer's linear modules, in the order in which the model has them."""
    hidden, inner, heads = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head_size = int(config.get("head_dim") or hidden // heads)
    queries, keys = heads * head_size, int(config.get("num_key_value_heads") or heads) * head_size
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def _draw_linear(inputs: int, outputs: int, rank: int) -> Tensor:
    """Making both linear modules draws their weights, and PEFT draws lora_A once more (tuners/lora/layer.py, update_layer)."""
    from torch import nn

    lora_a = nn.Linear(inputs, rank, bias=False)
    nn.Linear(rank, outputs, bias=False)
    nn.init.kaiming_uniform_(lora_a.weight, a=math.sqrt(5))
    return lora_a.weight.detach()


def _draw_embedding(tokens: int, hidden: int, rank: int) -> Tensor:
    """Both matrices, and the second once more."""
    import torch

    torch.randn(rank, tokens)
    torch.randn(hidden, rank)
    return torch.nn.init.normal_(torch.empty(hidden, rank))


def module_of(name: str) -> str:
    """The module, in PEFT's names, whose draw a weight `base_model.model.<module>.lora_…` gets; of fused ones the first."""
    path = name.partition(".lora_")[0].removeprefix("base_model.model.")
    owner, _, last = path.rpartition(".")
    return f"{owner}.{FUSED.get(last, (last,))[0]}"


def in_ranks_order(name: str, drawn: Tensor, shape: AdapterShape) -> Tensor:
    """o_proj's lora_A (r, inputs) with its columns as the ranks hold the query heads, when KV heads are replicated."""
    import torch

    if ".o_proj." not in name or not shape.replicates_kv:
        return drawn
    order = torch.tensor(head_order(shape))
    found: Tensor = drawn.unflatten(1, (shape.heads, -1)).index_select(1, order).flatten(1, 2)
    return found
