"""A training on Trn2 with TorchNeuron by config/hyperpod-trn2.yaml: processes, refusals, environment, the whole manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.cli.jobspec import layout_reasons
from steps.errors import ConfigError
from steps.settings.config import parse_options, parse_settings
from steps.settings.plan import Plan
from steps.settings.resolve import resolve
from steps.train.stage import PROCESS_ENVIRONMENT, lay_out
from steps.train.torchneuron.planning import COMM_PORT, NEFF_CACHE
from tests.shared.manifests import environment_of, manifest_of, require_golden

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).with_name("llama-1b-on-one-trn2.yaml")
BATCH = {"global_batch": 64}


def laid_out(changes: dict[str, Any] | None = None, *, config: dict[str, Any] | None = None, **options: Any) -> Plan:
    """With config/hyperpod-trn2.yaml; `changes` are of its sections, `config` of the model's config.json."""
    raw = yaml.safe_load((ROOT / "config" / "hyperpod-trn2.yaml").read_text())
    for section, values in (changes or {}).items():
        raw[section] |= values
    plan = resolve(parse_settings(raw), parse_options({"model": "llama3.2-1b", "dataset": "alpaca", **options}))
    return lay_out(plan, {**plan.model.architecture, **(config or {})})


def test_the_whole_manifest_is_the_golden_one() -> None:
    require_golden(manifest_of(laid_out(**BATCH)), GOLDEN)


def test_a_node_gets_a_process_on_each_logical_core_and_all_its_devices() -> None:
    plan = laid_out(**BATCH)
    assert (plan.processes, plan.replicas, plan.tensor_parallel, plan.training.precision) == (64, 64, 1, "bf16")
    manifest = manifest_of(plan)
    (container,) = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    devices = {"aws.amazon.com/neuron": "16", "vpc.amazonaws.com/efa": "16"}
    assert {key: container["resources"]["limits"][key] for key in devices} == devices
    assert manifest["metadata"]["annotations"]["hyperpod-lora/layout"] == (
        "64 processes; data parallel 64: 64 processes, one on each logical core; "
        "TorchNeuron is a public beta, and this has not been run on a device"
    )
    assert layout_reasons(plan) == list(plan.layout)


def test_the_runtime_meets_on_a_port_of_its_own_which_kubernetes_can_fill_in() -> None:
    """$(MASTER_ADDR) is replaced where a variable of this name stands before it in the list."""
    manifest = manifest_of(laid_out(**BATCH))
    names = list(environment_of(manifest))
    assert environment_of(manifest)["NEURON_RT_ROOT_COMM_ID"] == f"$(MASTER_ADDR):{COMM_PORT}"
    assert names.index("MASTER_ADDR") < names.index("NEURON_RT_ROOT_COMM_ID")
    assert environment_of(manifest)["MASTER_PORT"] != str(COMM_PORT)


def test_nothing_of_the_xla_stack_is_set_and_the_cache_is_the_nodes_own() -> None:
    found = environment_of(manifest_of(laid_out(**BATCH)))
    assert found["TORCH_NEURONX_NEFF_CACHE_DIR"] == NEFF_CACHE
    assert found["TORCH_NEURONX_NEFF_CACHE_LOCK_TIMEOUT"] == "7200"
    assert (
        not {"NEURON_FUSE_SOFTMAX", "NEURON_COMPILE_CACHE_URL", "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS"}
        & found.keys()
    )
    assert not PROCESS_ENVIRONMENT.keys() & found.keys()
    assert "FI_PROVIDER" not in found
    two = environment_of(manifest_of(laid_out({"cluster": {"nodes": 2}}, global_batch=128)))
    assert (two["FI_PROVIDER"], two["FI_EFA_USE_DEVICE_RDMA"], two["FI_EFA_FORK_SAFE"]) == ("efa", "1", "1")


@pytest.mark.parametrize(
    ("changes", "options", "processes", "words"),
    [
        ({}, {"global_batch": 32}, 32, "32 of 64 cores stay idle: a global batch of 32 feeds no more"),
        ({}, {"processes": 8, **BATCH}, 8, "56 of 64 cores stay idle: as given"),
        ({"cluster": {"instance_type": "ml.trn2.3xlarge"}}, {}, 4, "data parallel 4: 4 processes"),
        ({"cluster": {"nodes": 2}}, {"global_batch": 128}, 64, "data parallel 128: 2 × 64 processes"),
    ],
    ids=["a batch that feeds half", "given", "the small one", "two nodes"],
)
def test_other_batches_and_nodes(changes: dict[str, Any], options: dict[str, Any], processes: int, words: str) -> None:
    plan = laid_out(changes, **options)
    assert plan.processes == processes
    assert words in "; ".join(plan.layout)
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"quantization": "4bit"}, "--quantization: 4bit needs bitsandbytes, which knows no neuron device"),
        ({}, {"sharding": "fsdp"}, "--sharding: fsdp on TorchNeuron was tried neither on a device nor on a stand-in"),
        ({"cluster": {"instance_type": "trn1.32xlarge"}}, {}, "Trn2 and Trn3 only, trn1.32xlarge never gets it"),
        ({"cluster": {"instance_type": ""}}, {}, "cluster.instance_type: must name the nodes' type"),
        ({"launcher": {"compile_cache": "s3://bucket/graphs"}}, {}, "launcher.compile_cache: must be a folder"),
        ({"launcher": {"tensor_parallel": 4}}, {}, "launcher.tensor_parallel: is for the neuron backend, got 4 with torchneuron"),
        ({"launcher": {"precompile": True}}, {}, "launcher.precompile: is for the neuron backend"),
        ({"deadlines": {"compiling_steps": 1}}, {}, "deadlines.compiling_steps: must be >= 2"),
        ({}, {"processes": 6, "global_batch": 48}, "--processes: trn2.48xlarge takes 1, 8, 16, 32, 64, got 6"),
        ({"cluster": {"nodes": 2}}, {"processes": 8}, "trn2.48xlarge takes 64 when there are several nodes, got 8"),
        ({"cluster": {"nodes": 2}}, BATCH, "must be a multiple of processes × micro batch = 128 × 1 = 128, got 64"),
        ({}, {"model": "llama3", "precision": "fp32"}, "29.9 GiB of fp32 weights: a core of trn2.48xlarge has 24 GiB"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_fetched(
    changes: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        laid_out(changes, **options)
    assert words in str(caught.value)


def test_a_model_of_experts_is_refused_since_each_of_their_batches_is_another_shape() -> None:
    with pytest.raises(ConfigError, match="--model: mixtral gives each of its 8 experts other tokens"):
        laid_out(config={"model_type": "mixtral", "num_local_experts": 8}, packing="off")


def test_packing_goes_off_by_itself_where_samples_cannot_be_kept_apart_in_one_shape() -> None:
    strange = {"model_type": "gemma2"}
    assert laid_out(**BATCH).packing
    plan = laid_out(config=strange, **BATCH)
    assert (plan.packing, "packed samples of gemma2 cannot be kept apart" in plan.packing_reason) == (False, True)
    with pytest.raises(ConfigError, match="--packing: on, but packed samples of gemma2"):
        laid_out(config=strange, packing="on", **BATCH)


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        laid_out({"launcher": {"compile_cache": "s3://b"}, "deadlines": {"compiling_steps": 1}}, quantization="4bit")
    assert [problem.path for problem in caught.value.problems] == [
        "--quantization",
        "launcher.compile_cache",
        "deadlines.compiling_steps",
    ]
