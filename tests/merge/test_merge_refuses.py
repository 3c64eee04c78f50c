"""What cannot be merged is refused by name, and damaged files are named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steps.errors import CheckpointError, ModelError
from steps.merge.delta import changes_of
from steps.merge.inputs import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX
from steps.merge.outputs import merge_folders
from steps.protocol.safetensors_header import lay_out
from tests.merge.conftest import Workshop
from tests.merge.merge_records import merge

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN, UP, MAGNITUDE = (f"{MODULE}.{part}" for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"))
SHAPES: dict[str, tuple[int, ...]] = {DOWN: (2, 32), UP: (32, 2)}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        pytest.param({"peft_type": "IA3"}, "its peft_type is IA3, expected LORA", id="ia3"),
        pytest.param({"peft_type": "ADALORA"}, "its peft_type is ADALORA", id="adalora"),
        pytest.param({"peft_type": None}, "its peft_type is None", id="no type"),
        pytest.param({"init_lora_weights": "pissa"}, "changed the base's weights", id="pissa"),
        pytest.param({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'", id="fast pissa"),
        pytest.param({"init_lora_weights": "PiSSA"}, "'PiSSA'", id="pissa in capitals"),
        pytest.param({"init_lora_weights": "olora"}, "'olora'", id="olora"),
        pytest.param({"init_lora_weights": "corda"}, "'corda'", id="corda"),
        pytest.param({"init_lora_weights": "loftq"}, "'loftq'", id="loftq"),
        pytest.param({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers", id="layer replication"),
        pytest.param({"target_parameters": ["mlp.experts"]}, "bare parameters", id="target parameters"),
        pytest.param({"trainable_token_indices": [1, 2]}, "single rows of the embedding", id="token indices"),
        pytest.param({"megatron_config": {"a": 1}}, "Megatron", id="megatron"),
        pytest.param({"use_qalora": True}, "QALoRA", id="qalora"),
        pytest.param({"lora_bias": True}, "biases of its own", id="lora bias"),
        pytest.param({"alora_invocation_tokens": [1]}, "activated LoRA", id="alora"),
        pytest.param({"use_dora": True, "fan_in_fan_out": True}, "use_dora with fan_in_fan_out", id="dora in-out"),
        pytest.param({"use_magic": 3}, "use_magic=3, which this version does not know", id="a setting of the future"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_name(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        changes_of({**LORA, **setting}, SHAPES, model_type="llama")
    assert words in str(caught.value)
    assert "merge it with PEFT's merge_and_unload instead" in str(caught.value)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_an_init_that_leaves_the_base_alone_is_merged(start: object) -> None:
    changes = changes_of({**LORA, "init_lora_weights": start}, SHAPES, model_type="llama")
    assert list(changes) == ["model.layers.0.self_attn.q_proj.weight"]


@pytest.mark.parametrize(
    ("setting", "shapes", "words"),
    [
        pytest.param({}, {DOWN: (2, 32)}, "q_proj has no lora_B", id="half of it"),
        pytest.param({"use_dora": True}, SHAPES, "q_proj has no lora_magnitude_vector", id="dora without length"),
        pytest.param({"r": 8}, SHAPES, "says rank 8, the tensors have shapes [2, 32] and [32, 2]", id="another rank"),
        pytest.param({"r": "two"}, SHAPES, "is 'two', expected a number", id="rank no number"),
        pytest.param({}, {}, "holds no tensor", id="empty"),
        pytest.param({}, {"q_proj.lora_A.weight": (2, 32)}, "expected a name that begins with", id="foreign names"),
        pytest.param({}, {DOWN: (2, 3, 1, 1), UP: (4, 2, 1, 1)}, "no linear or embedding layer", id="convolution"),
    ],
)
def test_an_incomplete_adapter_is_named(
    setting: dict[str, Any], shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        changes_of({**LORA, **setting}, shapes, model_type="llama")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        pytest.param({"hidden_size": 40}, r"of shape \[32, 32\], the base's has \[40, 40\]", id="another width"),
        pytest.param({"num_hidden_layers": 1}, r"layers\.1\.self_attn\.q_proj\.weight, .* does not have", id="fewer"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    workshop: Workshop, tmp_path: Path, sizes: dict[str, int], words: str
) -> None:
    trained_on = workshop.base("fp32-32", hidden_size=32)
    adapter = workshop.adapter_once(trained_on, "fits-32", r=2, target_modules=["q_proj"])
    base = workshop.base(f"other-{'-'.join(sizes)}", **sizes)
    with pytest.raises(CheckpointError, match=rf"does not belong to this base.*{words}.*it was trained on"):
        merge(base, adapter, tmp_path)
    assert list(tmp_path.glob("merged-*")) == []


@pytest.fixture
def base(workshop: Workshop, tmp_path: Path) -> Path:
    """A bf16 base of this test's own, to be damaged."""
    folder = tmp_path / "base"
    shutil.copytree(workshop.base("bfloat16", dtype="bfloat16"), folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of this test's own, written without PEFT."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(LORA))
    write_adapter(folder, 0.5)
    return folder


def write_adapter(folder: Path, value: float, dtype: str = "F32") -> None:
    header, places = lay_out(folder / ADAPTER_WEIGHTS, [(name, dtype, shape) for name, shape in SHAPES.items()], {})
    values = np.full(sum(place.bytes for place in places) // 4, value, np.float32)
    (folder / ADAPTER_WEIGHTS).write_bytes(header + values.tobytes())


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def pointer(folder: Path) -> None:
    shard(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")


def damaged_header(folder: Path) -> None:
    data = bytearray(shard(folder).read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    shard(folder).write_bytes(data)


BASE_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard cut in its weights": (
        lambda folder: os.truncate(shard(folder), 20_000),
        "{shard} is cut off or damaged",
    ),
    "a shard cut in its header": (lambda folder: os.truncate(shard(folder), 100), "{shard} is damaged"),
    "a shard empty": (lambda folder: os.truncate(shard(folder), 0), "{shard} is damaged"),
    "a shard longer": (lambda folder: os.truncate(shard(folder), 1_000_000), "found 1000000"),
    "a pointer in a shard's place": (pointer, "{shard} is damaged or no safetensors file"),
    "a header overwritten": (damaged_header, "{shard}: the safetensors header is damaged"),
    "a shard missing": (lambda folder: shard(folder).unlink(), "has no {name}"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot read {folder}/config.json"),
    "the index no JSON": (lambda folder: (folder / INDEX).write_text("{"), f"{INDEX} is not valid JSON"),
    "the index no object": (lambda folder: (folder / INDEX).write_text("[]"), "expected a JSON object, found list"),
    "a shard in another's place": (
        lambda folder: shutil.copyfile(sorted(folder.glob("*.safetensors"))[0], shard(folder)),
        "{shard} does not hold",
    ),
    "quantised": (lambda folder: edit(folder / "config.json", quantization_config={"a": 1}), "is quantised"),
}


@pytest.mark.parametrize(("damage", "words"), BASE_DAMAGE.values(), ids=BASE_DAMAGE)
def test_a_damaged_base_is_named(
    base: Path, adapter: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    name = shard(base).name
    damage(base)
    with pytest.raises(ModelError) as caught:
        merge(base, adapter, tmp_path / "run")
    assert words.format(shard=base / name, name=name, folder=base) in str(caught.value)
    assert list((tmp_path / "run").glob("merged-*")) == []


def test_a_base_with_a_weight_in_eight_bits_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    for file in base.glob("*.safetensors"):
        data = file.read_bytes()
        file.write_bytes(data.replace(b'"BF16"', b'"U16" '))
    with pytest.raises(ModelError, match=r"q_proj\.weight is stored as U16; only BF16, F16 and F32"):
        merge(base, adapter, tmp_path / "run")


ADAPTER_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut": (lambda folder: os.truncate(folder / ADAPTER_WEIGHTS, 300), f"{ADAPTER_WEIGHTS} is cut off"),
    "weights missing": (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), f"has no {ADAPTER_WEIGHTS}"),
    "config missing": (lambda folder: (folder / ADAPTER_CONFIG).unlink(), f"{ADAPTER_CONFIG}: No such file"),
    "NaN": (lambda folder: write_adapter(folder, float("nan")), "NaN or infinite values for model.layers.0"),
    "infinite": (lambda folder: write_adapter(folder, float("inf")), "its training diverged"),
    "integers": (lambda folder: write_adapter(folder, 0, "I32"), "is stored as I32, expected F32, BF16 or F16"),
}


@pytest.mark.parametrize(("damage", "words"), ADAPTER_DAMAGE.values(), ids=ADAPTER_DAMAGE)
def test_a_damaged_adapter_is_named(
    base: Path, adapter: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(adapter)
    with pytest.raises(CheckpointError) as caught:
        merge(base, adapter, tmp_path / "run")
    assert words in str(caught.value)
    assert list((tmp_path / "run").glob("merged-*")) == []


def test_a_value_too_large_for_fp16_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    write_adapter(adapter, 200.0)
    with pytest.raises(ModelError, match=r"q_proj\.weight: a merged value is too large for float16"):
        merge_folders(base, adapter, tmp_path / "out", "float16")


def test_an_unknown_dtype_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'int8'; expected auto, bfloat16, float16, float32"):
        merge_folders(base, adapter, tmp_path / "out", "int8")
