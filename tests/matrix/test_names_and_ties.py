"""Weights that files name otherwise, embeddings that are also heads, and what `start` refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steps.train.pytorch import skeleton
from tests.matrix.architectures import drop_prefix, write, write_multimodal
from tests.matrix.measure import CLOSE, measure, refusal

pytestmark = pytest.mark.filterwarnings("ignore")
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "prefix", "targets"),
    [
        pytest.param("gpt2", "transformer.", "all-linear", id="hub GPT-2"),
        pytest.param("gpt2", "transformer.", "lm_head,c_attn", id="hub GPT-2, its tied head"),
        pytest.param("gpt2", "transformer.", "wte,c_attn", id="hub GPT-2, its tied embedding", marks=SLOW),
        pytest.param("gpt2", "", "lm_head,wte", id="GPT-2, both ends", marks=SLOW),
        pytest.param("bloom", "transformer.", "all-linear", id="hub BLOOM", marks=SLOW),
        pytest.param("bloom", "transformer.", "word_embeddings", id="hub BLOOM, its tied embedding"),
        pytest.param("bloom", "", "lm_head", id="BLOOM, its tied head", marks=SLOW),
        pytest.param("falcon", "", "word_embeddings", id="Falcon, its tied embedding"),
        pytest.param("falcon", "", "lm_head,dense", id="Falcon, its tied head", marks=SLOW),
        pytest.param("qwen2", "", "embed_tokens", id="Qwen2, its tied embedding"),
        pytest.param("qwen2", "", "lm_head", id="Qwen2, its tied head", marks=SLOW),
        pytest.param("gemma2", "", "embed_tokens,lm_head", id="Gemma 2, both ends", marks=SLOW),
        pytest.param("gpt_neox", "", "embed_in,embed_out", id="GPT-NeoX, untied ends", marks=SLOW),
        pytest.param("opt", "", "embed_tokens", id="OPT, its tied embedding", marks=SLOW),
        pytest.param("mpt", "", "wte", id="MPT, its tied embedding", marks=SLOW),
    ],
)
def test_the_merged_model_computes_what_the_adapted_one_does(
    tmp_path: Path, name: str, prefix: str, targets: str
) -> None:
    write(name, tmp_path / "base")
    if prefix:
        drop_prefix(tmp_path / "base", prefix)
    found = measure(tmp_path / "base", lora_targets=targets)
    assert found.adapted > 0
    assert max(found.plain_loss, found.padded_loss, found.reload) < CLOSE
    assert targets != "all-linear" or found.merge < 1e-6


def test_adapters_do_not_land_in_a_vision_tower(tmp_path: Path) -> None:
    write_multimodal(tmp_path / "base")
    found = measure(tmp_path / "base")
    assert found.adapted == 2 * 7
    assert max(found.plain_loss, found.reload) < CLOSE
    assert found.merge < 1e-6
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "vision_tower" in saved["exclude_modules"]


@pytest.mark.parametrize("method", ["dora", "rslora"])
def test_the_other_methods_merge_as_peft_does(tmp_path: Path, method: str) -> None:
    write("phi", tmp_path / "base")
    found = measure(tmp_path / "base", method=method)
    assert found.merge < 1e-6
    assert found.reload < CLOSE


def edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(base: Path) -> None:
        file = base / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def rename_layers(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = base / "model.safetensors"
    save_file({name.replace("layers", "blocks"): tensor for name, tensor in load_file(file).items()}, file)


def store_as_fp8(base: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = base / "model.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}, file)


def unchanged(base: Path) -> None:
    """As it is."""


@pytest.mark.parametrize(
    ("name", "edit", "options", "words"),
    [
        pytest.param(
            "gpt2", unchanged, {"lora_targets": "q_proj"},
            ["no module 'q_proj' (did you mean 'c_proj'?); it has c_attn, c_fc, c_proj, lm_head"], id="another's targets",
        ),
        pytest.param("gpt2", unchanged, {"lora_targets": "mlp"}, ["a GPT2MLP and no linear layer"], id="a block as target"),
        pytest.param("gpt2", unchanged, {"method": "dora"}, ["--method: dora cannot be merged"], id="DoRA on Conv1D"),
        pytest.param(
            "llama", unchanged, {"method": "dora", "lora_targets": "embed_tokens"}, ["--method: dora cannot be merged"],
            id="DoRA on an embedding",
        ),
        pytest.param(
            "bloom", unchanged, {"packing": "on"}, ["--packing: on, but samples of one row see each other in bloom"],
            id="packing that leaks",
        ),
        pytest.param("llama", rename_layers, {}, ["--model: its files have no weights for 14 of 14 modules"], id="other names"),
        pytest.param("gemma2", rename_layers, {}, ["no weights for 14 of 14 modules", "blocks"], id="other names, by skeleton"),
        pytest.param("llama", store_as_fp8, {}, ["is stored as F8_E4M3"], id="FP8 weights"),
        pytest.param(
            "llama", edit_config(quantization_config={"quant_method": "gptq"}), {},
            ["--model: its weights are quantised (gptq)", "--quantization 4bit"], id="a quantised base",
        ),
        pytest.param(
            "llama", edit_config(model_type="no_such"), {}, ["makes no causal language model of 'no_such'"], id="an unknown type"
        ),
        pytest.param(
            "llama", edit_config(model_type="bert", num_key_value_heads=4), {},
            ["--model: bert models see the tokens after each one"], id="an encoder",
        ),
        pytest.param(
            "gpt2", edit_config(n_embd=64), {}, ["its config.json asks for"], id="a config of other sizes"
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_or_merged_is_refused_in_start(
    tmp_path: Path, name: str, edit: Callable[[Path], None], options: dict[str, Any], words: list[str]
) -> None:
    write(name, tmp_path / "base")
    edit(tmp_path / "base")
    message = refusal(tmp_path / "base", **options)
    assert message
    assert [word for word in words if word not in message] == []


def test_a_model_without_a_layer_that_makes_its_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = skeleton.build({"model_type": "gpt2"})
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    [problem] = skeleton.target_problems(model, ("all-linear",), method="lora")
    assert "GPT2LMHeadModel does not say which layer makes its logits" in str(problem)
