"""An adapter on stacked experts, as PEFT 0.21 writes it for transformers 5, merged into files with each expert by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from steps.errors import CheckpointError
from steps.merge.outputs import merge_folders
from tests.merge.conftest import stored

EXPERTS, HIDDEN, INNER, RANK = 3, 8, 6, 2
LAYER = "model.layers.0."
NAMES = {
    "qwen3_moe": (f"{LAYER}mlp.experts", "gate_proj", "up_proj", "down_proj", f"{LAYER}mlp.gate.weight"),
    "mixtral": (f"{LAYER}block_sparse_moe.experts", "w1", "w3", "w2", f"{LAYER}block_sparse_moe.gate.weight"),
}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj"],
    "target_parameters": ["down_proj", "gate.weight", "gate_up_proj"],
    "rank_pattern": {r".*\.gate_up_proj": 2 * RANK}, "alpha_pattern": {r".*\.gate_up_proj": 4 * RANK},
}  # fmt: skip
SCALE = 2.0
ADAPTER = f"base_model.model.{LAYER}mlp."


def write_base(folder: Path, model_type: str, dtype: torch.dtype) -> None:
    experts, gate, up, down, router = NAMES[model_type]
    shapes = {router: (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        shapes |= {f"{experts}.{expert}.{name}.weight": (INNER, HIDDEN) for name in (gate, up)}
        shapes |= {f"{experts}.{expert}.{down}.weight": (HIDDEN, INNER)}
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def write_adapter(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    shapes = {
        "experts.base_layer.lora_A.weight": (EXPERTS * 2 * RANK, HIDDEN),
        "experts.base_layer.lora_B.weight": (2 * INNER, 2 * RANK * EXPERTS),
        "experts.lora_A.weight": (EXPERTS * RANK, INNER),
        "experts.lora_B.weight": (HIDDEN, RANK * EXPERTS),
        "gate.lora_A.weight": (RANK, HIDDEN),
        "gate.lora_B.weight": (EXPERTS, RANK),
    }
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    folder.mkdir()
    save_file({ADAPTER + name: tensor for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    return weights


def delta(adapter: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """(experts, out, in), by the formula of PEFT's ParamWrapper.get_delta_weight."""
    first = adapter[f"{name}.lora_A.weight"].reshape(EXPERTS, -1, adapter[f"{name}.lora_A.weight"].shape[-1])
    second = adapter[f"{name}.lora_B.weight"]
    return torch.einsum("ore,eri->eoi", second.reshape(len(second), -1, EXPERTS), first) * SCALE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", NAMES)
def test_every_expert_gets_its_own_part_of_the_stack(tmp_path: Path, model_type: str, dtype: torch.dtype) -> None:
    write_base(tmp_path / "base", model_type, dtype)
    adapter = write_adapter(tmp_path / "adapter")
    merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    before, after = stored(tmp_path / "base"), stored(tmp_path / "merged")
    experts, gate, up, down, router = NAMES[model_type]
    both, last = delta(adapter, "experts.base_layer"), delta(adapter, "experts")
    expected = {router: adapter["gate.lora_B.weight"] @ adapter["gate.lora_A.weight"] * SCALE}
    for expert in range(EXPERTS):
        expected[f"{experts}.{expert}.{gate}.weight"] = both[expert, :INNER]
        expected[f"{experts}.{expert}.{up}.weight"] = both[expert, INNER:]
        expected[f"{experts}.{expert}.{down}.weight"] = last[expert]
    assert after.keys() == expected.keys()
    for name, change in expected.items():
        exact = before[name].float() + change
        close = 1e-5 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(after[name].float(), exact, rtol=close, atol=close * float(exact.abs().max()))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"target_parameters": ["mlp.router_bias"]}, "other than experts' weights", id="another parameter"),
        pytest.param({"rank_pattern": {}}, "does not belong to this base", id="a rank that the tensors do not have"),
        pytest.param({"target_parameters": ["gate_up_proj"]}, "not of the same adapter", id="one of two parameters"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    write_base(tmp_path / "base", "qwen3_moe", torch.float32)
    write_adapter(tmp_path / "adapter", **changes)
    with pytest.raises(CheckpointError, match=word):
        merge_folders(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
