"""Tiny models of the architectures that the matrix goes through: two layers, random weights, seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 99
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED: dict[str, Any] = COMMON | {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MAMBA = {
    "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 8,
    "mamba_d_head": 16, "mamba_expand": 2, "mamba_chunk_size": 16,
}  # fmt: skip

LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 8},
    "mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2": GROUPED | {"tie_word_embeddings": True},
    "qwen3": GROUPED | {"head_dim": 8},
    "qwen2_moe": GROUPED | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": GROUPED | EXPERTS | {"head_dim": 8},
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": GROUPED
    | {
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": GROUPED | {"partial_rotary_factor": 0.5},
    "phi3": GROUPED,
    "gpt2": GPT2_SIZES,
    "gpt_neo": {
        **COMMON,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gpt_neox": COMMON,
    "gptj": GPT2_SIZES | {"rotary_dim": 4},
    "granite": GROUPED,
    "granitemoehybrid": GROUPED | MAMBA | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16},
    "olmo2": GROUPED,
    "stablelm": GROUPED,
    "falcon": COMMON | {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "opt": COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8, "block_ff_dim": 48},
    "qwen3_next": GROUPED
    | EXPERTS
    | {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "gpt_oss": GROUPED
    | {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "nemotron": GROUPED,
    "persimmon": COMMON,
    "smollm3": GROUPED,
    "cohere": GROUPED,
    "glm4": GROUPED | {"head_dim": 8},
    "gemma": GROUPED | {"head_dim": 8},
    "starcoder2": GROUPED | {"sliding_window": 8},
    "apertus": GROUPED,
    "olmo3": GROUPED | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_bigcode": GPT2_SIZES,
    "codegen": GPT2_SIZES | {"rotary_dim": 4, "n_ctx": 128},
    "xglm": {"vocab_size": VOCABULARY, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
             "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "gemma4_text": GROUPED
    | {
        "head_dim": 8,
        "global_head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 0,
    },
    "qwen3_5_text": GROUPED | LINEAR | {"head_dim": 8},
    "qwen3_5_moe_text": GROUPED | LINEAR | EXPERTS | {"head_dim": 8, "shared_expert_intermediate_size": 16},
    "deepseek_v3": COMMON
    | {
        "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "n_shared_experts": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
    },
    "glm4_moe": GROUPED
    | {
        "head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
    "lfm2_moe": GROUPED
    | {
        "layer_types": ["conv", "full_attention"], "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "num_dense_layers": 1,
    },
    "ministral3": GROUPED | {"head_dim": 8},
    "seed_oss": GROUPED | {"head_dim": 8},
    "ernie4_5": GROUPED | {"head_dim": 8},
    "exaone4": GROUPED | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "minimax_m2": GROUPED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon_h1": GROUPED
    | {"head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
       "mamba_chunk_size": 16},
    "mamba2": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8,
        "n_groups": 1, "chunk_size": 16,
    },
}  # fmt: skip


def config_of(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(name, **CONFIGS[name])


def write(name: str, folder: Path) -> None:
    """A model folder with weights large enough that every part of the model shows in its logits."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)


def drop_prefix(folder: Path, prefix: str) -> None:
    """Rewrite the weights as hub files of GPT-2 and BLOOM have them: saved from the model without its head."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = {name.removeprefix(prefix): tensor for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def write_multimodal(folder: Path) -> None:
    """A Gemma 3 with a vision tower; its files name the language model as the hub's do."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}  # fmt: skip
    text = CONFIGS["gemma3_text"]
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=VOCABULARY - 1
    )
    model = Gemma3ForConditionalGeneration(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
