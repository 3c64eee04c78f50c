"""The layout table of the neuron backend, and what it refuses before anything is submitted."""

from __future__ import annotations

import re
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.settings.instances import INSTANCES
from steps.train.neuron.planning.layout import Asked, Layout, choose_layout, has_fused_qkv, weight_bytes, why_not_split
from steps.train.neuron.planning.refusals import (
    attention_of,
    check_sequence_parallel,
    check_training,
    linear_targets,
    sharing_note,
)
from steps.train.spec import TrainSpec

TRN1 = INSTANCES["trn1.32xlarge"]
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_3B = {
    "model_type": "llama", "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True,
    "head_dim": 128,
}  # fmt: skip
LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, "head_dim": 64,
}  # fmt: skip


def make_spec(**changes: Any) -> TrainSpec:
    lora = {"method": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": ["all-linear"]}
    raw = {
        "schema": "hyperpod-lora/train-spec/1", "directory": "/d", "identity": "i", "base_path": "/b", "base_digest": "b",
        "base_name": "n", "prepared_path": "/p", "prepared_digest": "p", "steps": 10, "global_batch": 16, "micro_batch": 1,
        "learning_rate": 1e-4, "scheduler": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "sequence_length": 2048, "packed": False, "precision": "bf16", "quantization": "none", "seed": 1, "checkpoint_every": 5,
        "checkpoints_kept": 3, "validation_every": 5, "validation_rows": 8, "backend": "neuron",
        **changes, "lora": lora | changes.pop("lora", {}),
    }  # fmt: skip
    return TrainSpec.from_dict(raw)


@pytest.mark.parametrize(("config", "parameters"), [(LLAMA_8B, 8.03e9), (LLAMA_3B, 3.21e9), (LLAMA_1B, 1.236e9)])
def test_weights_are_counted_from_the_config(config: dict[str, Any], parameters: float) -> None:
    assert weight_bytes(config) == pytest.approx(2 * parameters, rel=2e-3)


@pytest.mark.parametrize(
    ("config", "instance", "nodes", "tp", "dp"),
    [
        (LLAMA_8B, "trn1.32xlarge", 1, 8, 4),
        (LLAMA_8B, "trn1n.32xlarge", 2, 8, 8),
        (LLAMA_8B, "trn2.48xlarge", 1, 4, 16),
        (LLAMA_3B, "trn1.32xlarge", 1, 2, 16),
        (LLAMA_3B, "trn2.48xlarge", 1, 1, 64),
        (LLAMA_1B, "trn1.32xlarge", 1, 1, 32),
        (LLAMA_1B, "trn1.32xlarge", 4, 1, 128),
        (LLAMA_1B, "trn1.2xlarge", 1, 1, 2),
    ],
)
def test_the_table_of_layouts(config: dict[str, Any], instance: str, nodes: int, tp: int, dp: int) -> None:
    layout = choose_layout(config, INSTANCES[instance], Asked(nodes, 128, 1))
    assert (layout.tensor_parallel, layout.data_parallel) == (tp, dp)
    assert layout.processes == INSTANCES[instance].cores


@pytest.mark.parametrize(
    ("stages", "nodes", "tp", "dp", "gib"),
    [(2, 1, 2, 8, 7.5), (4, 1, 2, 4, 4.2), (2, 2, 2, 16, 7.5), (8, 1, 1, 4, 2.6)],
)
def test_stages_need_less_tensor_parallelism(stages: int, nodes: int, tp: int, dp: int, gib: float) -> None:
    layout = choose_layout(LLAMA_8B, TRN1, Asked(nodes, 128, 1, pipeline_parallel=stages))
    assert (layout.tensor_parallel, layout.data_parallel, layout.processes) == (tp, dp, 32)
    assert weight_bytes(LLAMA_8B, stages) / 2**30 == pytest.approx(gib, abs=0.05)
    assert f"data parallel {dp}: {nodes} × 32 processes / {tp} / {stages}; " in layout.reasons[1]


def test_what_stages_cost_is_said() -> None:
    layout = choose_layout(LLAMA_8B, TRN1, Asked(1, 64, 1, tensor_parallel=8, pipeline_parallel=4))
    assert layout.reasons[2] == (
        "pipeline parallel 4: as given; 64 micro-batches of a step flow through 4 stages, each of which waits 4% of the time "
        "for the others"
    )


def test_the_largest_stage_of_a_model_whose_layers_do_not_divide() -> None:
    whole, third = (
        weight_bytes(LLAMA_1B),
        weight_bytes(LLAMA_1B, 3),
    )  # 16 layers: 5, 5, 6; the embeddings are at both ends
    embeddings = 2 * 128256 * 2048
    assert third - embeddings == pytest.approx((whole - embeddings) * 6 / 16, rel=1e-4)


def test_the_golden_layout_explains_itself() -> None:
    layout = choose_layout(LLAMA_8B, TRN1, Asked(2, 64, 1))
    assert layout.reasons == (
        "tensor parallel 8: the smallest that fits, leaves 1.9 GiB of bf16 weights to a core of 16 GiB (25% are allowed)",
        "data parallel 8: 2 × 32 processes / 8; ZeRO-1 shards the optimizer over it",
    )


def test_a_small_global_batch_leaves_cores_idle_and_says_so() -> None:
    layout = choose_layout(LLAMA_1B, TRN1, Asked(1, 8, 1))
    assert (layout.processes, layout.data_parallel) == (8, 8)
    assert "24 of 32 cores stay idle" in layout.reasons[-1]


@pytest.mark.parametrize(
    ("config", "instance", "nodes", "batch", "words"),
    [
        (LLAMA_8B, "trn1.2xlarge", 1, 16, "15.0 GiB of bf16 weights do not fit trn1.2xlarge"),
        (LLAMA_1B, "trn1.32xlarge", 2, 16, "must be a multiple of replicas × micro batch = 64 × 1 = 64, got 16"),
    ],
)
def test_what_has_no_layout(config: dict[str, Any], instance: str, nodes: int, batch: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_layout(config, INSTANCES[instance], Asked(nodes, batch, 1))


@pytest.mark.parametrize(
    ("asked", "processes", "tp", "words"),
    [
        (Asked(1, 64, 1, tensor_parallel=2), 32, 2, "7.5 GiB are more than the rule allows"),
        (
            Asked(1, 64, 1, tensor_parallel=4),
            32,
            4,
            "groups of 4 are not among those that trn1.32xlarge is known to take",
        ),
        (Asked(1, 64, 1, tensor_parallel=32), 32, 32, "tensor parallel 32: as given, leaves 0.5 GiB"),
        (Asked(1, 64, 1, processes=8), 8, 8, "24 of 32 cores stay idle: --processes is 8"),
        (Asked(2, 64, 1, processes=32), 32, 8, "data parallel 8: 2 × 32 processes / 8"),
    ],
)
def test_what_is_given_stands_and_is_commented(asked: Asked, processes: int, tp: int, words: str) -> None:
    layout = choose_layout(LLAMA_8B, TRN1, asked)
    assert (layout.processes, layout.tensor_parallel) == (processes, tp)
    assert any(words in reason for reason in layout.reasons)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Asked(1, 64, 1, processes=12), "--processes: trn1.32xlarge takes 1, 2, 8, 32, got 12"),
        (Asked(2, 64, 1, processes=8), "trn1.32xlarge takes 32 when there are several nodes, got 8"),
        (Asked(1, 64, 1, processes=2, tensor_parallel=8), "must be a multiple of launcher.tensor_parallel, 8, got 2"),
        (
            Asked(1, 6, 1, processes=32, tensor_parallel=8),
            "--global-batch: must be a multiple of .* = 4 × 1 = 4, got 6",
        ),
        (Asked(1, 64, 1, tensor_parallel=64), "64 divides none of the numbers of processes that trn1.32xlarge takes"),
        (Asked(1, 64, 1, pipeline_parallel=3), "2 × pipeline parallel 3 divides none of the numbers of processes"),
        (
            Asked(1, 64, 1, processes=8, tensor_parallel=8, pipeline_parallel=2),
            "--processes: 1 × 8 must be a multiple of launcher.tensor_parallel × launcher.pipeline_parallel, 8 × 2",
        ),
    ],
)
def test_what_is_given_is_checked(asked: Asked, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_layout(LLAMA_8B, TRN1, asked)


def test_every_reason_names_what_it_decides() -> None:
    layout: Layout = choose_layout(LLAMA_8B, INSTANCES["trn2.48xlarge"], Asked(1, 64, 1))
    assert [reason.split(":")[0] for reason in layout.reasons] == ["tensor parallel 4", "data parallel 16"]


@pytest.mark.parametrize(("tp", "fused"), [(1, False), (2, False), (8, False), (16, True), (32, True)])
def test_kv_heads_are_replicated_only_when_they_are_fewer_than_ranks(tp: int, fused: bool) -> None:
    assert has_fused_qkv(LLAMA_8B, tp) is fused
    assert why_not_split(LLAMA_8B, tp) == []


def test_24_heads_do_not_divide_by_32() -> None:
    assert why_not_split(LLAMA_3B, 32) == ["num_attention_heads = 24"]


REFUSED = [
    ("model type", {}, {"model_type": "gemma2"}, 8, "--model: the neuron backend trains llama and qwen3; got 'gemma2'"),
    ("fsdp", {"sharding": "fsdp"}, {}, 8, "--sharding: .*fsdp does not exist there"),
    ("4bit", {"quantization": "4bit"}, {}, 8, "--quantization: .*use --quantization none"),
    ("dora", {"lora": {"method": "dora"}}, {}, 8, "--method: .*use lora or rslora"),
    ("warm start", {"lora": {"init_adapter": "/a"}}, {}, 8, "--init-adapter: .*start fresh"),
    ("gate alone", {"lora": {"targets": ["gate_proj"]}}, {}, 8, "gate_proj without up_proj"),
    ("lm_head", {"lora": {"targets": ["lm_head"]}}, {}, 8, "lm_head cannot be trained"),
    ("tied", {"lora": {"targets": ["embed_tokens"]}}, {"tie_word_embeddings": True}, 8, "tied to lm_head"),
    ("part of qkv", {"tensor_parallel": 32, "lora": {"targets": ["q_proj"]}}, {}, 32, "q_proj without .*fuses the three"),
    ("processes", {"tensor_parallel": 8}, {}, 12, "must divide the number of processes, 12, got 8"),
    ("heads", {"tensor_parallel": 5}, {}, 5, "5 does not divide the model's num_attention_heads = 32"),
    ("length", {"tensor_parallel": 8, "sequence_length": 1002}, {}, 8, "--sequence-length: must be a multiple of"),
    ("granite", {}, {"model_type": "granite"}, 8, "--model: .*granite is not trained: .*divided by the targets twice"),
    ("stages", {"pipeline_parallel": 33}, {}, 33, "33 stages need as many layers, and the model has 32"),
    ("replicas", {"tensor_parallel": 2, "pipeline_parallel": 4}, {}, 12, "2 × 4, must divide the number of processes, 12"),
    ("embeddings", {"pipeline_parallel": 2, "lora": {"targets": ["embed_tokens"]}}, {}, 8, "embed_tokens alone"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "config", "world", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_refused(changes: dict[str, Any], config: dict[str, Any], world: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_training(make_spec(**changes), LLAMA_8B | config, world=world)


def test_all_refusals_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_training(make_spec(sharding="fsdp", quantization="4bit", tensor_parallel=3), LLAMA_8B, world=8)
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_stages_are_taken(model_type: str) -> None:
    check_training(make_spec(tensor_parallel=2, pipeline_parallel=4), LLAMA_8B | {"model_type": model_type}, world=16)


@pytest.mark.parametrize("tp", [1, 2, 8, 32])
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "k_proj", "v_proj"], ["o_proj", "embed_tokens"]])
def test_what_is_taken(tp: int, targets: list[str]) -> None:
    check_training(make_spec(tensor_parallel=tp, lora={"targets": targets, "method": "rslora"}), LLAMA_8B, world=32)


@pytest.mark.parametrize(
    ("tp", "targets", "words"),
    [
        (
            8,
            ["all-linear"],
            "gate_proj/up_proj: one lora_A .*--lora-targets q_proj,k_proj,v_proj,o_proj,down_proj trains alike",
        ),
        (
            32,
            ["all-linear"],
            "q_proj/k_proj/v_proj and gate_proj/up_proj: one .*--lora-targets o_proj,down_proj trains alike",
        ),
        (8, ["gate_proj", "up_proj"], "torch backend's$"),
        (8, ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"], "^$"),
    ],
)
def test_what_shares_one_lora_a_is_told(tp: int, targets: list[str], words: str) -> None:
    note = sharing_note(make_spec(tensor_parallel=tp, lora={"targets": targets}), LLAMA_8B)
    assert re.search(words, note)


def test_all_linear_is_spelled_out() -> None:
    assert len(linear_targets(make_spec())) == 7
    assert linear_targets(make_spec(lora={"targets": ["q_proj"]})) == ("q_proj",)


@pytest.mark.parametrize(
    ("packed", "length", "attention"),
    [
        (False, 2048, "flash_attention_2"),
        (False, 4096, "flash_attention_2"),
        (False, 1024, "eager"),
        (True, 2048, "eager"),
    ],
)
def test_flash_attention_only_where_samples_cannot_see_each_other(packed: bool, length: int, attention: str) -> None:
    assert attention_of(packed=packed, sequence_length=length) == attention


def test_bf16_tensor_parallel_needs_sequence_parallel() -> None:
    check_sequence_parallel(tensor_parallel=8, is_on=True, precision="bf16")
    check_sequence_parallel(tensor_parallel=8, is_on=False, precision="fp32")
    check_sequence_parallel(tensor_parallel=1, is_on=False, precision="bf16")
    with pytest.raises(ConfigError, match="wrong gradients"):
        check_sequence_parallel(tensor_parallel=2, is_on=False, precision="bf16")
