"""`hyperpod-lora endpoint`: how the model of a run is served."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.plain_text import command
from tests.cli.cli_harness import call

LORA = {"r": 8, "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "use_dora": False, "bias": "none"}
WHERE = (
    "--location",
    "s3://models/orders",
    "--region",
    "us-west-2",
    "--image",
    "vllm:1",
    "--instance-type",
    "ml.g5.2xlarge",
)


def make_run(root: Path, **adapter: Any) -> Path:
    run = root / "LoraFlow" / "7"
    (run / "merged-1").mkdir(parents=True)
    (run / "train-1" / "adapter").mkdir(parents=True)
    (run / "merged-1" / "merge.json").write_text("{}")
    lineage = {"base": {"name": "llama3.2-1b"}, "data": {"name": "my orders (v2)"}}
    (run / "merged-1" / "lineage.json").write_text(json.dumps(lineage))
    (run / "train-1" / "adapter" / "adapter_config.json").write_text(json.dumps({**LORA, **adapter}))
    return run


def test_both_lines_are_told_and_are_commands(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    lines = call("endpoint", "7", "--root", tmp_path).output.splitlines()
    assert shlex.split(lines[1]) == [
        *("vllm", "serve", str(run / "merged-1")),
        *("--served-model-name", "llama3-2-1b-my-orders-v2"),
    ]
    assert shlex.split(lines[3])[:3] == ["vllm", "serve", "meta-llama/Llama-3.2-1B"]


def test_of_a_merged_folder_alone_the_merged_line_is_told(tmp_path: Path) -> None:
    told = call("endpoint", make_run(tmp_path) / "merged-1", "--name", "orders").output
    assert "served-model-name orders" in told
    assert "adapter" not in told


def test_an_adapter_that_vllm_cannot_load_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, use_dora=True)
    told = call("endpoint", "7", "--root", tmp_path)
    assert told.exit_code == 0
    assert "vLLM cannot load a DoRA adapter; serve the merged model" in told.output


def test_with_a_location_it_is_a_manifest(tmp_path: Path) -> None:
    make_run(tmp_path)
    manifest = yaml.safe_load(call("endpoint", "7", "--root", tmp_path, *WHERE).output)
    assert manifest["kind"] == "InferenceEndpointConfig"
    assert manifest["spec"]["modelSourceConfig"]["modelLocation"] == "orders"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["8"], "no run '8'"),
        (["7", "--location", "there"], "--location: 'there'"),
        (["7", *WHERE, "--name", "a b"], "--name"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, words: list[str], told: str) -> None:
    make_run(tmp_path)
    result = call("endpoint", *words, "--root", tmp_path)
    assert result.exit_code == 1
    assert told in result.output


def test_a_run_without_a_merged_model_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "LoraFlow" / "9"
    (folder / "train-1").mkdir(parents=True)
    said = call("endpoint", "9", "--root", tmp_path).output
    assert f"has no merged model; `{command('status', folder)}`" in said
