"""Llama 3.1 8B on two trn1.32xlarge, as config/hyperpod.yaml says it: the layout, and what of it stands in the manifest.

Why TP=8, DP=8: 15.0 GiB of bf16 weights have to leave room for activations and the compiler's scratch on cores of 16 GiB, so a
core gets a quarter at most, 4 GiB. Of the groups that trn1's collectives take (1, 2, 8, 32), 8 is the smallest that does: 1.9 GiB
each. 2 nodes × 32 cores / 8 are 8 replicas; 32 rows a step are 4 for each, accumulated one by one; ZeRO-1 shards the optimizer
over the 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.errors import ConfigError
from steps.settings.config import parse_options, parse_settings
from steps.settings.plan import Plan
from steps.settings.resolve import resolve
from steps.train.neuron.planning.environment import neuron_environment
from steps.train.stage import PROCESS_ENVIRONMENT, lay_out
from tests.shared.manifests import environment_of, manifest_of, require_golden

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).with_name("llama-8b-on-two-trn1.yaml")
GOLDEN_LAYOUT = (
    "TP=8 DP=8 PP=1, 64 processes; "
    "tensor parallel 8: the smallest that fits, leaves 1.9 GiB of bf16 weights to a core of 16 GiB (25% are allowed); "
    "data parallel 8: 2 × 32 processes / 8; ZeRO-1 shards the optimizer over it; "
    "gate_proj/up_proj: one lora_A for each group, fewer weights and other losses than the torch backend's "
    "(--lora-targets q_proj,k_proj,v_proj,o_proj,down_proj trains alike on both)"
)


def plan_of(changes: dict[str, Any] | None = None, **options: Any) -> Plan:
    """With config/hyperpod.yaml; `changes` are of its sections."""
    raw = yaml.safe_load((ROOT / "config" / "hyperpod.yaml").read_text())
    for section, values in (changes or {}).items():
        raw[section] |= values
    return resolve(parse_settings(raw), parse_options({"model": "llama3", "dataset": "alpaca", **options}))


def laid_out(changes: dict[str, Any] | None = None, **options: Any) -> Plan:
    plan = plan_of(changes, **options)
    return lay_out(plan, plan.model.architecture)


def test_the_layout_is_open_until_the_model_is_known() -> None:
    plan = plan_of()
    assert (plan.processes, plan.tensor_parallel, plan.is_laid_out) == (0, 0, False)
    found = laid_out()
    assert (found.processes, found.world, found.tensor_parallel, found.replicas, found.accumulation) == (
        32,
        64,
        8,
        8,
        4,
    )
    assert Plan.model_validate(found.model_dump(mode="json")) == found


def test_the_whole_manifest_is_the_golden_one() -> None:
    require_golden(manifest_of(laid_out()), GOLDEN)


def test_the_golden_manifest_of_two_trn1_with_llama_8b() -> None:
    manifest = manifest_of(laid_out())
    worker = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    annotations = manifest["metadata"]["annotations"]
    assert annotations["hyperpod-lora/layout"] == GOLDEN_LAYOUT
    assert annotations["hyperpod-lora/attention"] == "eager; packing isolated by a mask"
    assert (worker["replicas"], manifest["spec"]["nprocPerNode"]) == (2, "32")
    assert {"--nodes=2", "--processes=32"} <= set(container["args"])
    assert not any(argument.startswith("--wrapper") for argument in container["args"])
    devices = {"aws.amazon.com/neuron": "16", "vpc.amazonaws.com/efa": "8"}
    assert {key: container["resources"]["limits"][key] for key in devices} == devices
    assert worker["template"]["spec"]["nodeSelector"] == {"node.kubernetes.io/instance-type": "ml.trn1.32xlarge"}
    expected = neuron_environment(nodes=2)
    found = environment_of(manifest)
    assert {name: found[name] for name in expected} == expected
    assert not PROCESS_ENVIRONMENT.keys() & found.keys()
    assert found["FI_PROVIDER"] == "efa"


def test_the_annotation_names_the_stages() -> None:
    plan = laid_out({"launcher": {"pipeline_parallel": 2}})
    assert (plan.tensor_parallel, plan.pipeline_parallel, plan.replicas, plan.world) == (2, 2, 16, 64)
    words = manifest_of(plan)["metadata"]["annotations"]["hyperpod-lora/layout"]
    assert words.startswith("TP=2 DP=16 PP=2, 64 processes; ")
    assert "pipeline parallel 2: as given" in words


def test_an_s3_cache_is_the_compilers_own_and_a_folder_is_copied() -> None:
    assert environment_of(manifest_of(laid_out()))["NEURON_COMPILE_CACHE_URL"] == "/var/tmp/neuron-compile-cache"
    remote = laid_out({"launcher": {"compile_cache": "s3://bucket/graphs"}})
    assert environment_of(manifest_of(remote))["NEURON_COMPILE_CACHE_URL"] == "s3://bucket/graphs"


def test_the_clusters_own_environment_is_stronger() -> None:
    plan = laid_out({"cluster": {"environment": {"NEURON_RT_EXEC_TIMEOUT": "1200"}}})
    assert environment_of(manifest_of(plan))["NEURON_RT_EXEC_TIMEOUT"] == "1200"


@pytest.mark.parametrize(
    ("changes", "options", "tp", "world"),
    [
        ({"cluster": {"nodes": 1}}, {}, 8, 32),
        ({"cluster": {"instance_type": "ml.trn2.48xlarge"}}, {"global_batch": 64}, 4, 128),
        ({"launcher": {"tensor_parallel": 32}}, {}, 32, 64),
        ({}, {"model": "llama3.2-3b"}, 2, 64),
        ({}, {"model": "llama3.2-1b", "global_batch": 64}, 1, 64),
        ({"cluster": {"nodes": 1}}, {"model": "llama3.2-1b", "global_batch": 8}, 1, 8),
    ],
    ids=["one node", "trn2", "given", "3B", "1B", "cores that the batch cannot feed"],
)
def test_other_models_and_nodes(changes: dict[str, Any], options: dict[str, Any], tp: int, world: int) -> None:
    plan = laid_out(changes, **options)
    assert (plan.tensor_parallel, plan.world) == (tp, world)
    assert plan.training.global_batch % (plan.replicas * plan.training.micro_batch) == 0


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (
            {},
            {"model": "llama3.2-1b"},
            "--global-batch: must be a multiple of replicas × micro batch = 64 × 1 = 64, got 32",
        ),
        ({}, {"method": "dora"}, "--method: on the neuron backend, dora loses its magnitudes"),
        ({}, {"sharding": "fsdp"}, "--sharding: on the neuron backend, fsdp does not exist there"),
        (
            {"launcher": {"tensor_parallel": 64}},
            {},
            "launcher.tensor_parallel: 64 divides none of the numbers of processes",
        ),
        ({"launcher": {"tensor_parallel": 16}}, {"processes": 8}, "--processes"),
        ({}, {"processes": 8}, "trn1.32xlarge takes 32 when there are several nodes, got 8"),
        (
            {"cluster": {"instance_type": ""}, "launcher": {"tensor_parallel": 0}},
            {},
            "0 is chosen by the instance type",
        ),
    ],
)
def test_what_is_refused_before_anything_is_fetched(
    changes: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        laid_out(changes, **options)


def test_on_a_machine_of_unknown_type_a_given_layout_stands() -> None:
    plan = laid_out({"cluster": {"instance_type": ""}, "launcher": {"tensor_parallel": 2}}, processes=2)
    assert (plan.processes, plan.tensor_parallel) == (2, 2)
    assert [reason.split(":")[0] for reason in plan.layout] == ["gate_proj/up_proj"]


def test_fewer_nodes_keep_the_layout_of_a_node() -> None:
    plan = laid_out({"cluster": {"nodes": 4, "min_nodes": 1}}, global_batch=32)
    assert plan.node_choices == (4, 2, 1)
