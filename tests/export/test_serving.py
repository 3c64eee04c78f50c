"""What is handed on to model servers: vLLM's lines, and the inference operator's resource."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.export.serving import Endpoint, adapter_line, endpoint_manifest, merged_line, refusals

LORA = {"r": 8, "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "use_dora": False, "bias": "none"}
ENDPOINT = Endpoint("orders", "s3://models/team/orders", "us-west-2", "vllm/vllm-openai:v1", "ml.g5.2xlarge", 1)


def test_a_folder_with_blanks_and_quotes_is_one_word_of_the_line() -> None:
    folder = Path("/fsx/it's a run!/merged")
    assert shlex.split(merged_line(folder, "orders")) == [
        *("vllm", "serve", str(folder)),
        *("--served-model-name", "orders"),
    ]


@pytest.mark.parametrize(("rank", "allowed"), [(1, "1"), (4, "8"), (8, "8"), (20, "32"), (257, "320"), (512, "512")])
def test_the_adapters_rank_is_the_next_that_the_server_allows(rank: int, allowed: str) -> None:
    words = shlex.split(adapter_line(Path("/a"), "orders", {**LORA, "r": rank}))
    assert words[:4] == ["vllm", "serve", "meta-llama/Llama-3.2-1B", "--enable-lora"]
    assert words[-2:] == ["--max-lora-rank", allowed]
    assert json.loads(words[5]) == {"name": "orders", "path": "/a", "base_model_name": "meta-llama/Llama-3.2-1B"}


def test_the_highest_rank_of_any_module_counts() -> None:
    assert adapter_line(Path("/a"), "x", {**LORA, "rank_pattern": {"q_proj": 33}}).endswith("--max-lora-rank 64")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"bias": "all"}, "bias: all"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"r": 513}, "513"),
        ({"rank_pattern": {"q_proj": 1024}}, "1024"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_refused_by_name(change: dict[str, Any], word: str) -> None:
    assert len(refusals({**LORA, **change})) == 1
    with pytest.raises(ConfigError, match=word) as failed:
        adapter_line(Path("/a"), "x", {**LORA, **change})
    assert "serve the merged model" in str(failed.value)


def test_the_resource_reads_the_bucket_and_serves_openais_address() -> None:
    spec = endpoint_manifest(ENDPOINT)["spec"]
    assert spec["modelSourceConfig"] == {
        "modelSourceType": "s3",
        "s3Storage": {"bucketName": "models", "region": "us-west-2"},
        "modelLocation": "team/orders",
    }
    assert spec["worker"]["command"] == ["vllm", "serve", spec["worker"]["modelVolumeMount"]["mountPath"]]
    assert spec["worker"]["args"] == ["--served-model-name", "orders", "--port", "8000"]
    assert spec["worker"]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert spec["invocationEndpoint"] == "v1/chat/completions"


def test_fsx_neuron_devices_shards_and_context() -> None:
    asked = replace(ENDPOINT, location="fsx://fs-0a1b/LoraFlow/7/merged-1/", instance_type="ml.trn2.48xlarge")
    manifest = endpoint_manifest(replace(asked, name="Orders", region="", accelerators=4, context=4096, replicas=2))
    spec = manifest["spec"]
    assert spec["modelSourceConfig"]["fsxStorage"] == {"fileSystemId": "fs-0a1b"}
    assert spec["modelSourceConfig"]["modelLocation"] == "LoraFlow/7/merged-1"
    assert spec["worker"]["resources"]["requests"] == {"aws.amazon.com/neuron": 4}
    assert spec["worker"]["args"][-4:] == ["--tensor-parallel-size", "4", "--max-model-len", "4096"]
    assert (manifest["metadata"]["name"], spec["modelName"], spec["replicas"]) == ("orders", "Orders", 2)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as failed:
        endpoint_manifest(Endpoint("a_b", "file:///x", "", "", "g5", 0, replicas=0))
    told = {problem.path for problem in failed.value.problems}
    assert told == {"--name", "--location", "--image", "--instance-type", "--accelerators", "--replicas"}
    with pytest.raises(ConfigError, match="--region"):
        endpoint_manifest(replace(ENDPOINT, region=""))
