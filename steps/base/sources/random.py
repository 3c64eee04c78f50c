"""A tiny Llama with random weights and a small tokenizer, written without torch: for tests and for trying the flow.

Called by `stage` for presets with `random`. The same preset gives the same bytes on every machine.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.base.sources.weights import Tensor, write_file
from steps.settings.catalog import RandomModel

if TYPE_CHECKING:
    import numpy as np

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
START, END = 1, 2
"""Ids of the turn markers; END is also padding and end of text, as in SmolLM2."""
VOCABULARY = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# What the tokenizer's merges are learned from: enough English and JSON that a short text does not become a token per letter.
TEXT = (
    "system user assistant You are a helpful assistant. Below is an instruction that describes a task.",
    "Write a response that appropriately completes the request. Answer the question with one JSON object.",
    "I would like to order three large boxes of the red apples for Anna Miller in London, please, before Monday.",
    "Please send two blue shirts and one green jacket to Peter Smith in Paris; they should be there on Friday.",
    '{"customer": "Anna Miller", "city": "London", "item": "apples", "quantity": 3, "color": "red", "express": true}',
    '{"name": "Peter", "product": "shirt", "count": 2, "size": "large", "when": "Friday", "urgent": false, "note": null}',
    "How many are there in total? There were 12 of them and then 30 more, so the answer is 42. What is the capital of it?",
    "the and that with this from have will can for not but all one which their when who what more about into time than",
)


def tiny_config(preset: RandomModel) -> dict[str, Any]:
    """The config.json that `write_tiny` writes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": preset.hidden_size,
        "intermediate_size": preset.intermediate_size,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "num_key_value_heads": preset.kv_heads,
        "head_dim": preset.hidden_size // preset.heads,
        "max_position_embeddings": preset.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "torch_dtype": "float32",
    }


def write_tiny(folder: Path, preset: RandomModel) -> None:
    """Write the whole model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(preset)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": START, "eos_token_id": END, "pad_token_id": END})
    )
    write_file(folder / "model.safetensors", _tensors(config, preset.seed), dtype="F32")
    _write_tokenizer(folder, preset)


def _tensors(config: dict[str, Any], seed: int) -> list[Tensor]:
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    matrices = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
        shapes |= {
            f"model.layers.{layer}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")
        }
    return [
        Tensor(name, shape, partial(_random, shape, seed, number))
        for number, (name, shape) in enumerate(shapes.items())
    ]


def _random(shape: tuple[int, ...], seed: int, number: int) -> np.ndarray[Any, Any]:
    import numpy as np

    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    return np.random.default_rng([seed, number]).normal(0.0, 0.02, shape).astype(np.float32)


def _write_tokenizer(folder: Path, preset: RandomModel) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    unknown, start, end = SPECIAL_TOKENS
    write_tokenizer_config(
        folder,
        longest=preset.max_positions,
        chat_template=CHAT_TEMPLATE,
        start=start,
        end=end,
        padding=end,
        unknown=unknown,
    )


def write_tokenizer_config(
    folder: Path, *, longest: int, chat_template: str, start: str, end: str, padding: str, unknown: str
) -> None:
    """tokenizer_config.json of a byte-level BPE tokenizer with these special tokens; `longest` in tokens."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        "pad_token": padding,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
        "chat_template": chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False))
