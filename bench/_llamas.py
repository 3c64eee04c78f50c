"""Model folders of Llama's shapes with random weights, and an adapter for each; for `merge`."""

from __future__ import annotations

import json
import math
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

RANK = 16
SHARDS = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(out, in) of one layer's linear modules."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "tiny": Shape(256, 512, 4, 8, 4, 4096, True),
    "0.5b": Shape(1536, 4096, 12, 12, 4, 128256, True),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256, True),
    "3b": Shape(3072, 8192, 28, 24, 8, 128256, True),
    "8b": Shape(4096, 14336, 32, 32, 8, 128256, False),
}


def make_model(folder: Path, shape: Shape) -> None:
    """`base` and `adapter` in `folder`, made by another process: a child's peak memory begins at its parent's."""
    context = multiprocessing.get_context("spawn")
    for make, name in ((make_base, "base"), (make_adapter, "adapter")):
        maker = context.Process(target=make, args=(folder / name, shape))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError(f"making {folder / name} failed")


def make_base(folder: Path, shape: Shape) -> None:
    """Random bf16 weights in shards of about equal size, with an index."""
    folder.mkdir(parents=True)
    sizes = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        sizes |= {f"{prefix}{name}.weight": size for name, size in shape.linear.items()}
        sizes |= {f"{prefix}{name}.weight": (shape.hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    sizes["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    total = sum(math.prod(size) * 2 for size in sizes.values())
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(SHARDS)]
    at = 0
    for name, size in sizes.items():
        shards[min(at * SHARDS // total, SHARDS - 1)][name] = size
        at += math.prod(size) * 2
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        write_random(folder / file, tensors, "BF16")
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config))


def make_adapter(folder: Path, shape: Shape) -> None:
    """A random fp32 LoRA of rank 16 on all linear layers."""
    folder.mkdir(parents=True)
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(shape.layers):
        for name, (rows, columns) in shape.linear.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors |= {f"{prefix}.lora_A.weight": (RANK, columns), f"{prefix}.lora_B.weight": (rows, RANK)}
    write_random(folder / "adapter_model.safetensors", tensors, "F32")
    targets = sorted(name.split(".")[1] for name in shape.linear)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": targets,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_random(file: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Values around ±0.02, as an initialised model's; the same block again and again, which no measurement here notices."""
    import numpy as np

    from steps.protocol.safetensors_header import lay_out

    values = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * np.float32(0.02)
    block = values.tobytes() if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header, places = lay_out(file, [(name, dtype, size) for name, size in tensors.items()], {"format": "pt"})
    with file.open("wb") as stream:
        stream.write(header)
        for place in places:
            for left in range(place.bytes, 0, -len(block)):
                stream.write(block[:left])
