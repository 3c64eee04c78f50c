"""Does packing keep samples apart in this architecture? Tried on a tiny model of its config.json, random weights, on the CPU.

Asked by `train.architecture`. transformers isolates packed samples where an architecture builds its mask from position_ids;
older ones, recurrent and convolutional layers do not, and say nothing. So it is measured, with the code that trains: the loss of
a sample must be the same alone, behind another sample in its row, and behind yet another.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steps.library_versions import plain_floats
from steps.protocol.prepared import IGNORED_LABEL, PreparedRow
from steps.train.loop.rows import collate

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Relative, of fp32 losses near ln 64; samples that see each other differ by hundredths and more."""
VOCABULARY = 64
LENGTHS = (11, 23)
"""Tokens of the two samples; more than the tiny window."""
SMALL: dict[str, int | float | str | None] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("n_inner", "ffn_dim", "ffn_hidden_size", "block_ff_dim", "d_ff"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "state_size"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_expand", "expand"), 2),
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rotary_dim": 4, "mamba_dt_rank": 4,
    "rope_scaling": None, "query_pre_attn_scalar": 8, "block_multiple_of": 8, "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip
"""What a config's sizes become; only those that it has."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
PERIODS = ("attn_layer_period", "expert_layer_period", "sliding_window_pattern", "no_rope_layer_interval")
MOST_LAYERS = 8
MOST_PARAMETERS = 20_000_000
"""A tiny model has a hundredth of it; more would take long, and memory."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the tiny model showed."""

    why_not_packed: str = ""
    """Why samples must not share a row, in words; empty where they are isolated."""
    is_causal: bool = True
    """No token sees those after it; taken for granted where it could not be tried."""


def probe(config: Mapping[str, Any]) -> Found:
    """Try the architecture of a config.json."""
    import torch
    from transformers import AutoConfig

    if config.get("text_config"):
        return Found("it is a multimodal wrapper, for which isolation is not proven")
    try:
        whole = plain_floats(
            AutoConfig.for_model(**plain_floats(dict(config))).to_dict()
        )  # and what config.json leaves out
        tiny = AutoConfig.for_model(**shrink(whole))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            apart, second, third, early, other = _measure(tiny)
    except Exception as error:  # whatever a foreign architecture's code raises: what cannot be tried is not proven
        logger.info("probe of %s: %r", config.get("model_type"), error)
        return Found(f"whether its samples stay apart could not be tried ({type(error).__name__}: {str(error)[:200]})")
    if all(_is_close(loss, apart) for loss in (second, third)):
        return Found(is_causal=_is_close(early, other))
    return Found(
        f"samples of one row see each other in {config.get('model_type')} models: on a tiny one a sample's loss is "
        f"{apart:.4f} alone, {second:.4f} and {third:.4f} behind two others",
        is_causal=_is_close(early, other),
    )


def _is_close(loss: float, expected: float) -> bool:
    return abs(loss - expected) <= TOLERANCE * expected


def shrink(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with tiny sizes and few layers, but with every kind of layer."""
    small = {key: _small(key, value, config) for key, value in config.items()}
    key = next((name for name in LAYERS if isinstance(config.get(name), int)), "")
    if key:
        keep = _layers_to_keep(config, config[key])
        small[key] = len(keep)
        for name, value in config.items():  # one entry per layer
            if isinstance(value, list) and len(value) == config[key]:
                small[name] = [value[layer] for layer in keep]
    if "attention_types" in config:  # GPT-Neo: [[kinds, repeats], …]
        small |= {
            "attention_types": [[["global", "local"], 1]],
            "attention_layers": ["global", "local"],
            "num_layers": 2,
        }
    for name in ("architectures", "auto_map", "torch_dtype", "dtype", "quantization_config"):
        small.pop(name, None)
    return small


def _small(key: str, value: Any, config: Mapping[str, Any]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if key in SMALL:
        return SMALL[key]
    if key.endswith("intermediate_size"):
        return 48
    if key.endswith("head_dim"):
        return 8
    if key in ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"):
        queries = config.get("num_attention_heads", config.get("n_head"))
        return 4 if value == queries else 1 if value == 1 else 2
    if key in ("sliding_window", "window_size", "attention_chunk_size"):
        return min(value, 8) if isinstance(value, int) else value
    if key in ("num_experts_per_tok", "moe_top_k", "top_k_experts"):
        return min(value, 2)
    return value


def _layers_to_keep(config: Mapping[str, Any], layers: int) -> list[int]:
    """Two layers, or the first of each kind, or a whole period."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        firsts = sorted({kinds.index(kind) for kind in kinds})
        return firsts if len(firsts) > 1 else list(range(min(2, layers)))
    periods = [config[name] for name in PERIODS if isinstance(config.get(name), int)]
    return list(range(min(layers, max(2, *periods, 2), MOST_LAYERS)))


def _measure(config: Any) -> list[float]:
    """Losses of one sample alone, behind a second and behind a third; and with two different continuations behind it."""
    import torch
    from transformers import AutoModelForCausalLM

    from steps.train.pytorch.attention import choose_attention
    from steps.train.pytorch.model import TargetLoss
    from steps.train.pytorch.skeleton import empty_model

    attention = choose_attention(config, sequence_length=sum(LENGTHS))
    size = sum(parameter.numel() for parameter in empty_model(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"its sizes are called otherwise than known: {size:,} parameters are left")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # the usual tiny start would hide what comes through attention
            parameter.normal_(std=0.2)
    loss = TargetLoss(model, precision="fp32")
    sample, others = _row(0, LENGTHS[1]), [_row(seed, LENGTHS[0], learned=False) for seed in (1, 2)]
    rows = [sample, *(_join(other, sample) for other in others), *(_as_one(_join(sample, other)) for other in others)]
    cpu = torch.device("cpu")
    return [loss(model, collate([row], packed=len(row.lengths) > 1), cpu).item() for row in rows]


def _row(seed: int, length: int, *, learned: bool = True) -> PreparedRow:
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, length).astype(np.int32)
    labels = ids.copy() if learned else np.full_like(ids, IGNORED_LABEL)
    return PreparedRow(ids, labels, np.array([length], dtype=np.int32))


def _join(*rows: PreparedRow) -> PreparedRow:
    return PreparedRow(
        np.concatenate([row.input_ids for row in rows]),
        np.concatenate([row.labels for row in rows]),
        np.concatenate([row.lengths for row in rows]),
    )


def _as_one(row: PreparedRow) -> PreparedRow:
    return PreparedRow(row.input_ids, row.labels, np.array([len(row.input_ids)], dtype=np.int32))
