"""Tiny models of many architectures, with random weights large enough that answers differ from prompt to prompt."""

from __future__ import annotations

from typing import Any

VOCABULARY = 128
WINDOW = 6
"""Shorter than the prompts' common beginning."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 64, "vocab_size": VOCABULARY}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_d_state": 8, "mamba_n_groups": 1}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**MOE, "head_dim": 8},
    "qwen2 window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "mistral": {"sliding_window": None},
    "mistral window": {"model_type": "mistral", "sliding_window": WINDOW},
    "mixtral": MOE,
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": WINDOW},
    "gemma3_text": {"head_dim": 8, "sliding_window": WINDOW, "num_hidden_layers": 6},
    "phi3": {"sliding_window": None},
    "phi3 window": {"model_type": "phi3", "sliding_window": WINDOW},
    "phi": {},
    "gpt2": GPT2,
    "gpt_neox": {},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                "window_size": WINDOW, "max_position_embeddings": 256, "vocab_size": VOCABULARY},
    "gptj": {**GPT2, "rotary_dim": 4},
    "granite": {},
    "granitemoe": MOE,
    "granitemoehybrid": {**MOE, **MAMBA, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]},
    "olmo2": {},
    "olmoe": MOE,
    "stablelm": {},
    "starcoder2": {},
    "smollm3": {},
    "cohere": {},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "falcon alibi": {"model_type": "falcon", "new_decoder_architecture": False, "multi_query": True, "alibi": True},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 4, "n_layer": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 256, "vocab_size": VOCABULARY},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "mamba": {"state_size": 8},
    "qwen3_next": {**MOE, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                   "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                   "shared_expert_intermediate_size": 32},
    "gpt_oss": {**MOE, "head_dim": 8, "sliding_window": WINDOW},
    "nemotron": {},
    "persimmon": {},
    "deepseek_v3": {**MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
                    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6, "first_k_dense_replace": 1,
                    "num_key_value_heads": 4},
}  # fmt: skip
"""By name: what differs from COMMON; the name is the model type where none is given."""


def make_model(name: str, *, seed: int = 0) -> Any:
    """The tiny model of this name, in fp32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    own = dict(CONFIGS[name])
    kind = own.pop("model_type", name)
    known = AutoConfig.for_model(kind)
    common = {key: value for key, value in COMMON.items() if hasattr(known, key) or key in ("vocab_size",)}
    if "n_embd" in own or kind in ("mpt", "gpt_neo"):
        common = {key: COMMON[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**common, **own})).eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 1.0 if "embed" in path or "wte" in path or "wpe" in path else 0.25)
    return model
