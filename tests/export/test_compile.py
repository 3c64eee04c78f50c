"""Compiling the merged model for Neuron: the command, its refusals, and what happens where there is no compiler."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError, ModelError
from steps.export.compile import CompiledModel, CompileRequest, compile_model, export_command, main

REQUEST = CompileRequest(batch_size=4, sequence_length=4096, tensor_parallel=8, instance_type="ml.trn1.32xlarge")
CONFIG = {"model_type": "llama", "dtype": "bfloat16", "num_attention_heads": 32, "max_position_embeddings": 131072}


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def exporter(*, leaves: str = "model.pt") -> Any:
    def run(command: Sequence[str]) -> None:
        Path(command[-1], leaves).write_text("compiled")

    return run


def test_the_command_names_everything_that_the_exporter_would_guess() -> None:
    expected = (
        "optimum-cli export neuron --model /m --task text-generation --batch_size 4 --sequence_length 4096 "
        "--tensor_parallel_size 8 --instance_type trn1 /o"
    )
    assert " ".join(export_command(Path("/m"), Path("/o"), REQUEST)) == expected


def test_without_a_compiler_it_says_so_and_with_which_command(merged: Path, tmp_path: Path) -> None:
    found = compile_model(merged, tmp_path / "out", REQUEST, missing=lambda: "neuronxcc not installed here")
    assert found.skipped == "neuronxcc not installed here"
    assert found.command.startswith("optimum-cli export neuron")
    assert not (tmp_path / "out").exists()


def test_a_compiled_model_is_recorded(merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = compile_model(merged, out, REQUEST, parents={"merged": "d"}, missing=lambda: "", run=exporter())
    assert CompiledModel.from_dict(json.loads((out / "compile.json").read_text())) == found
    assert (found.path, found.skipped, found.bytes, found.parents) == (str(out), "", 8, {"merged": "d"})


def test_an_export_without_a_model_leaves_nothing(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"left no model\.pt"):
        compile_model(merged, tmp_path / "out", REQUEST, missing=lambda: "", run=exporter(leaves="other"))
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("changes", "request_", "words"),
    [
        ({"model_type": "gemma2"}, REQUEST, "the exporter takes granite, llama"),
        ({"dtype": "float32"}, REQUEST, "inference.dtype: must be the merged model's type, float32, got bfloat16"),
        ({}, CompileRequest(1, 4096, 8, "p5.48xlarge"), "no Neuron instance type"),
        ({}, CompileRequest(1, 4096, 5, "trn1.32xlarge"), "must divide the model's 32 attention heads, got 5"),
        ({}, CompileRequest(1, 4096, 0, "trn1.32xlarge"), "inference.tensor_parallel: must be given"),
        ({"max_position_embeddings": 2048}, REQUEST, "must be <= 2048"),
    ],
)
def test_what_the_compiler_would_find_out_late(
    changes: dict[str, Any], request_: CompileRequest, words: str, merged: Path, tmp_path: Path
) -> None:
    (merged / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(ConfigError, match=words):
        compile_model(merged, tmp_path / "out", request_)


def test_by_hand_where_there_is_no_compiler(merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(merged), str(tmp_path / "out"), "--tensor-parallel", "8", "--instance-type", "trn1.32xlarge"]
    if not main(arguments):
        assert "not installed here" in json.loads(capsys.readouterr().out)["skipped"]
