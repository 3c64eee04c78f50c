"""What makes a folder a model, and what is said of one that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from steps.base.inspect import inspect
from steps.base.sources.weights import Tensor, round_to_bf16, write_file
from steps.errors import ModelError
from steps.protocol.safetensors_header import read_header


def _only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _bad_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)


def _missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(_only_pickles, ["only pytorch_model.bin", "only safetensors", "convert"], id="pickles"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), ["no safetensors"], id="no weights"),
        pytest.param(_adapter, ["PEFT adapter", "--init-adapter"], id="adapter"),
        pytest.param(lambda folder: (folder / "config.json").unlink(), ["no config.json", "it holds"], id="no config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{"), ["not valid JSON"], id="bad config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("[]"), ["no model_type"], id="list as config"),
        pytest.param(_no_tokenizer, ["no tokenizer", "tokenizer.json"], id="no tokenizer"),
        pytest.param(_cut_off, ["cut off", "expected", "found"], id="cut off"),
        pytest.param(_bad_header, ["header is damaged"], id="bad header"),
        pytest.param(
            lambda folder: (folder / "model.safetensors").write_bytes(b""), ["no safetensors file"], id="empty file"
        ),
        pytest.param(_missing_shard, ["1 missing", "model-2.safetensors"], id="missing shard"),
        pytest.param(
            lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
            ["index.json is damaged"],
            id="bad index",
        ),
    ],
)
def test_a_folder_that_is_no_model_says_what_is_wrong(
    model_folder: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    damage(model_folder)
    with pytest.raises(ModelError) as caught:
        inspect(model_folder)
    assert str(model_folder) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is a file: expected a folder"):
        inspect(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="does not exist"):
        inspect(tmp_path / "nothing")


def test_a_whole_folder_is_counted_without_loading_it(model_folder: Path) -> None:
    contents = inspect(model_folder)
    assert contents.dtype == "fp32"
    assert contents.config["model_type"] == "llama"
    assert contents.parameters == 512 * 16 + 16 + (2 * 16 * 16 + 2 * 8 * 16 + 3 * 32 * 16 + 2 * 16)


@settings(deadline=None)  # the first example pays for importing torch
@given(st_numpy.arrays(np.float32, (7,), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_rounding_to_bf16_is_torch_s(values: np.ndarray) -> None:
    import torch

    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert (round_to_bf16(values) == expected).all()


def test_written_weights_are_read_by_the_safetensors_library(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    values = np.arange(6, dtype=np.float32).reshape(2, 3) / 3
    path = tmp_path / "x.safetensors"
    write_file(path, [Tensor("a", (2, 3), lambda: values), Tensor("b", (2, 3), lambda: -values)], dtype="BF16")
    found = load_file(path)
    assert torch.equal(found["a"], torch.from_numpy(values).to(torch.bfloat16))
    assert torch.equal(found["b"], -found["a"])
    assert [tensor.shape for tensor in read_header(path, error=ModelError).tensors] == [(2, 3), (2, 3)]


def test_a_tensor_of_another_shape_than_announced_is_refused(tmp_path: Path) -> None:
    wrong = Tensor("a", (2,), lambda: np.zeros(3, np.float32))
    with pytest.raises(ModelError, match="expected shape"):
        write_file(tmp_path / "x.safetensors", [wrong], dtype="F32")
