"""A finished run handed on to a model server: the lines that serve it with vLLM, and a HyperPod inference endpoint.

Pure text and values: nothing is loaded, sent or started. Sources: vLLM's documentation of `vllm serve` and LoRA adapters; the
custom resource InferenceEndpointConfig, version v1, of the SageMaker HyperPod inference operator.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, Problem

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes."""
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
"""The resource's own rule for `modelName`."""
MOUNT = "/opt/ml/model"
PORT = 8000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What an InferenceEndpointConfig is made from."""

    name: str
    location: str
    """`s3://bucket/prefix` or `fsx://fs-0123456789abcdef0/path/below/the/mount`."""
    region: str
    """Of the bucket; unused for FSx."""
    image: str
    """Has the `vllm` command."""
    instance_type: str
    """Such as ml.g5.2xlarge."""
    accelerators: int
    """Devices per replica; the model is sharded over them."""
    replicas: int = 1
    context: int = 0
    """Tokens of prompt and answer together; 0: what the model can."""


def merged_line(folder: Path, name: str) -> str:
    """The command that serves a merged model; shell-quoted."""
    return shlex.join(["vllm", "serve", str(folder), "--served-model-name", name])


def adapter_line(folder: Path, name: str, config: Mapping[str, Any]) -> str:
    """The command that serves the base model with the adapter beside it; `config` is its adapter_config.json.

    Raises:
        ConfigError: vLLM cannot load such an adapter.
    """
    if reasons := refusals(config):
        raise ConfigError([Problem("adapter", f"{reason}; serve the merged model") for reason in reasons])
    base = str(config["base_model_name_or_path"])
    module = {"name": name, "path": str(folder), "base_model_name": base}
    rank = next(allowed for allowed in VLLM_RANKS if allowed >= highest_rank(config))
    lora = ["--enable-lora", "--lora-modules", json.dumps(module, ensure_ascii=False), "--max-lora-rank", str(rank)]
    return shlex.join(["vllm", "serve", base, *lora])


def refusals(config: Mapping[str, Any]) -> list[str]:
    """Why vLLM cannot load an adapter with this adapter_config.json; empty: it can."""
    found = []
    if config.get("use_dora"):
        found.append("vLLM cannot load a DoRA adapter")
    if config.get("modules_to_save"):
        found.append(f"vLLM cannot load whole trained modules ({', '.join(config['modules_to_save'])})")
    if config.get("bias", "none") != "none":
        found.append(f"vLLM cannot load trained biases (bias: {config['bias']})")
    if config.get("target_parameters"):
        found.append("vLLM cannot load LoRA on parameters without a module of their own (target_parameters)")
    if highest_rank(config) > VLLM_RANKS[-1]:
        found.append(f"vLLM loads ranks up to {VLLM_RANKS[-1]}, this adapter has {highest_rank(config)}")
    return found


def highest_rank(config: Mapping[str, Any]) -> int:
    """The highest rank of any module."""
    return max([int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())])


def endpoint_manifest(endpoint: Endpoint) -> dict[str, Any]:
    """The InferenceEndpointConfig of a merged model.

    Raises:
        ConfigError: name, location, region or instance type cannot be used; all at once.
    """
    if problems := _problems_of(endpoint):
        raise ConfigError(problems)
    limits = {_resource(endpoint.instance_type): endpoint.accelerators}
    check = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10}
    return {
        "apiVersion": "inference.sagemaker.aws.amazon.com/v1",
        "kind": "InferenceEndpointConfig",
        "metadata": {"name": endpoint.name.lower()},
        "spec": {
            "modelName": endpoint.name,
            "instanceType": endpoint.instance_type,
            "replicas": endpoint.replicas,
            "invocationEndpoint": "v1/chat/completions",
            "loadBalancer": {"healthCheckPath": "/health"},
            "modelSourceConfig": _source(endpoint),
            "worker": {
                "image": endpoint.image,
                "command": ["vllm", "serve", MOUNT],
                "args": _arguments(endpoint),
                "modelInvocationPort": {"containerPort": PORT, "name": "http"},
                "modelVolumeMount": {"name": "model", "mountPath": MOUNT},
                "resources": {"limits": limits, "requests": dict(limits)},
                "probes": {"readinessProbe": check, "startupProbe": {**check, "failureThreshold": 180}},
            },
        },
    }


def _arguments(endpoint: Endpoint) -> list[str]:
    context = ["--max-model-len", str(endpoint.context)] if endpoint.context else []
    shards = ["--tensor-parallel-size", str(endpoint.accelerators)] if endpoint.accelerators > 1 else []
    return ["--served-model-name", endpoint.name, "--port", str(PORT), *shards, *context]


def _source(endpoint: Endpoint) -> dict[str, Any]:
    kind, _, rest = endpoint.location.partition("://")
    holder, _, path = rest.partition("/")
    if kind == "s3":
        store = {"modelSourceType": "s3", "s3Storage": {"bucketName": holder, "region": endpoint.region}}
    else:
        store = {"modelSourceType": "fsx", "fsxStorage": {"fileSystemId": holder}}
    return {**store, "modelLocation": path.strip("/")}


def _resource(instance_type: str) -> str:
    is_neuron = instance_type.removeprefix("ml.").startswith(("trn", "inf"))
    return "aws.amazon.com/neuron" if is_neuron else "nvidia.com/gpu"


def _problems_of(endpoint: Endpoint) -> list[Problem]:
    rules = {
        "--name": (NAME.fullmatch(endpoint.name), f"{endpoint.name!r} is no name; letters, digits and - up to 63"),
        "--location": (
            re.fullmatch(r"(s3|fsx)://[^/]+/.+", endpoint.location),
            f"{endpoint.location!r}; s3://BUCKET/PREFIX, or fsx://FILE-SYSTEM-ID/PATH as seen below the mount",
        ),
        "--region": (
            endpoint.region or not endpoint.location.startswith("s3://"),
            "missing; a bucket is read in its own region, us-west-2 say",
        ),
        "--image": (endpoint.image, "missing; one with the vllm command, such as vllm/vllm-openai:TAG"),
        "--instance-type": (
            endpoint.instance_type.startswith("ml."),
            f"{endpoint.instance_type!r} is no instance type of HyperPod; such as ml.g5.2xlarge",
        ),
        "--accelerators": (endpoint.accelerators > 0, f"{endpoint.accelerators} devices serve no model; 1 or more"),
        "--replicas": (endpoint.replicas > 0, f"{endpoint.replicas} replicas serve no model; 1 or more"),
    }
    return [Problem(option, words) for option, (is_right, words) in rules.items() if not is_right]
