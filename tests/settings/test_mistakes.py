# ruff: noqa: E501  (one mistake, one line: the tables are read down)
"""Mistakes of people in settings, parameters and names: each with the words that it must be answered with.

Those in data, models and adapters are in `test_mistakes_in_files.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from steps.settings.checks import check_model
from steps.settings.config import parse_options, parse_settings
from steps.settings.plan import Plan
from tests.project.mistake_words import assert_tells, told
from tests.shared.sample_records import plan_of

# fmt: off
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "a section misspelt": ("storag: {root: x}", ["storag: unknown setting", "did you mean 'storage'"]),
    "a key misspelt": ("checkpoints: {every_step: 5}", ["checkpoints.every_step", "did you mean 'every_steps'", "known here: every_steps, keep"]),
    "a key of another section": ("retry: {keep: 3}", ["retry.keep: unknown setting", "known here: max_attempts"]),
    "a word for a number": ("retry: {max_attempts: many}", ["retry.max_attempts", "valid integer", "got 'many'"]),
    "a fraction for a count": ("checkpoints: {keep: 1.5}", ["checkpoints.keep", "integer", "got 1.5"]),
    "a negative number": ("storage: {min_free_gib: -1}", ["storage.min_free_gib: must be >= 0", "got -1"]),
    "keeping no checkpoint": ("checkpoints: {keep: 0}", ["checkpoints.keep: must be >= 1, got 0"]),
    "a deadline of nothing": ("deadlines: {step_gap_s: 0}", ["deadlines.step_gap_s: must be > 0", "got 0"]),
    "an infinite deadline": ("deadlines: {total_s: .inf}", ["deadlines.total_s", "finite", "got inf"]),
    "an unknown backend": ("launcher: {backend: tpu}", ["launcher.backend: must be one of 'torch', 'neuron' or 'torchneuron'", "got 'tpu'"]),
    "an unknown dtype": ("merge: {dtype: int8}", ["merge.dtype: must be one of 'auto', 'bf16'", "got 'int8'"]),
    "a word for a list": ("reporting: {report_to: wandb}", ["reporting.report_to: must be a list", "got 'wandb'"]),
    "an unknown tracker": ("reporting: {report_to: [wandbb]}", ["reporting.report_to.0", "'tensorboard', 'wandb'", "got 'wandbb'"]),
    "another word for refusing": ("prepare: {unusable_rows: fail}", ["prepare.unusable_rows: must be one of 'skip' or 'refuse'", "got 'fail'"]),
    "an empty section": ("retry:", ["retry: must be a mapping of settings, got None"]),
    "a number for a section": ("retry: 3", ["retry: must be a mapping of settings, got 3"]),
    "a list at the top": ("- retry", ["(top level): expected a mapping of settings, got list"]),
    "text at the top": ("retry", ["(top level): expected a mapping of settings, got str"]),
}
PARAMETERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a parameter misspelt": ({"lora_rnk": 8}, ["--lora-rnk: unknown setting", "did you mean '", "lora_rank"]),
    "a word for a number of steps": ({"max_steps": "ten"}, ["--max-steps", "valid integer", "got 'ten'"]),
    "negative steps": ({"max_steps": -1}, ["--max-steps: must be >= 0, got -1"]),
    "a rank beyond reason": ({"lora_rank": 4096}, ["--lora-rank: must be <= 1024, got 4096"]),
    "a negative alpha": ({"lora_alpha": -8}, ["--lora-alpha: must be >= 0", "got -8"]),
    "a dropout of everything": ({"lora_dropout": 1}, ["--lora-dropout: must be < 1", "got 1"]),
    "a learning rate as a percentage": ({"learning_rate": 20}, ["--learning-rate: must be <= 1", "got 20"]),
    "a learning rate that is no number": ({"learning_rate": float("nan")}, ["--learning-rate", "got nan"]),
    "a warm-up as long as the run": ({"warmup_ratio": 1.0}, ["--warmup-ratio: must be < 1", "got 1"]),
    "a warm-up in steps": ({"warmup_ratio": 100}, ["--warmup-ratio: must be < 1", "got 100"]),
    "nothing held out": ({"validation_fraction": -0.1}, ["--validation-fraction: must be >= 0", "got -0.1"]),
    "everything held out": ({"validation_fraction": 1}, ["--validation-fraction: must be < 1", "got 1"]),
    "an unknown method": ({"method": "qlora"}, ["--method: must be one of 'auto', 'lora', 'rslora' or 'dora'", "got 'qlora'"]),
    "an unknown precision": ({"precision": "fp8"}, ["--precision: must be one of", "'bf16'", "got 'fp8'"]),
    "8bit": ({"quantization": "8bit"}, ["--quantization: must be one of", "'4bit'", "got '8bit'"]),
    "an unknown scheduler": ({"scheduler": "cosin"}, ["--scheduler: must be one of", "'cosine'", "got 'cosin'"]),
    "a packing that is a word": ({"packing": "yes"}, ["--packing: must be one of 'auto', 'on' or 'off'", "got 'yes'"]),
    "less than no process": ({"processes": -1}, ["--processes: must be >= 0, got -1"]),
    "a negative seed": ({"seed": -1}, ["--seed: must be >= 0, got -1"]),
    "a seed too large": ({"seed": 2**40}, ["--seed: must be <", "got 1099511627776"]),
}
TOGETHER: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a model that does not exist": ({"model": "llama3.2-7b"}, ["--model: there is no Llama 3.2 7B", "--model llama3.2-3b or --model llama3.1-8b"]),
    "a model misspelt": ({"model": "smollm2-153m"}, ["--model: unknown preset 'smollm2-153m'", "did you mean 'smollm2-135m'", "hub id (owner/name) works too"]),
    "a data set misspelt": ({"dataset": "alpacca"}, ["--dataset: unknown preset 'alpacca'", "did you mean 'alpaca'", "presets: "]),
    "a file that is not there": ({"dataset": "data/train.jsonl"}, ["--dataset: no such file or folder: 'data/train.jsonl'", "looked for in /"]),
    "a bucket forgotten": ({"dataset": "s3://"}, ["--dataset: expected an address like s3://bucket/prefix", "got 's3://'"]),
    "no model": ({"model": ""}, ["--model: names nothing; presets: "]),
    "a batch that does not divide": ({"global_batch": 5, "micro_batch": 2}, ["--global-batch: must be a multiple of processes × micro batch = 1 × 2 = 2", "got 5", "4 and 6"]),
    "a batch smaller than the processes": ({"processes": 8, "global_batch": 4, "micro_batch": 1}, ["--global-batch", "8 × 1 = 8", "got 4", "nearest that fit are 8"]),
    "steps and epochs": ({"max_steps": 5, "epochs": 1}, ["--epochs: give either --max-steps or --epochs, not both"]),
    "fsdp on one process": ({"sharding": "fsdp"}, ["--sharding: fsdp shards over processes and there is 1", "--processes 2 or more"]),
    "fsdp in 4bit": ({"sharding": "fsdp", "processes": 2, "quantization": "4bit"}, ["--quantization: 4bit with --sharding fsdp is not supported", "use one of them"]),
    "dora in 4bit": ({"method": "dora", "quantization": "4bit"}, ["--method: dora with --quantization 4bit", "use lora or rslora"]),
    "no target": ({"lora_targets": " , "}, ["--lora-targets: names no module", "use all-linear or names such as q_proj,v_proj"]),
    "all targets and one": ({"lora_targets": "all-linear,q_proj"}, ["--lora-targets: all-linear stands alone", "got all-linear,q_proj"]),
    "an adapter that is not there": ({"init_adapter": "runs/last"}, ["--init-adapter: no adapter_config.json in 'runs/last'", "expected a PEFT adapter folder"]),
}
ON_NEURON: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "tensor parallel on torch": ({"tensor_parallel": 2}, {"processes": 2}, ["launcher.tensor_parallel", "neuron backend, got 2 with torch", "--sharding fsdp"]),
    "pipeline parallel on torch": ({"pipeline_parallel": 2}, {"processes": 2}, ["launcher.pipeline_parallel", "neuron backend, got 2 with torch", "--sharding fsdp"]),
    "no stage": ({"pipeline_parallel": 0, "backend": "neuron"}, {}, ["launcher.pipeline_parallel: must be >= 1, got 0"]),
    "processes that stages do not divide": ({"tensor_parallel": 2, "pipeline_parallel": 2, "backend": "neuron"}, {"processes": 6}, ["--processes: must be a multiple of launcher.tensor_parallel × launcher.pipeline_parallel, 4, got 6"]),
    "processes that tensor parallel does not divide": ({"tensor_parallel": 2, "backend": "neuron"}, {"processes": 3}, ["--processes: must be a multiple of launcher.tensor_parallel, 2, got 3"]),
}
LLAMA = {"model_type": "llama", "max_position_embeddings": 512, "hidden_size": 64, "intermediate_size": 128}
UNFIT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a sequence beyond the model": ({"sequence_length": 1024}, ["--sequence-length: must be <= 512", "max_position_embeddings", "got 1024"]),
    "a target that the model lacks": ({"lora_targets": "q_prj,v_proj"}, ["no module 'q_prj'", "did you mean 'q_proj'", "it has q_proj, k_proj"]),
    "a target of another family": ({"lora_targets": "c_attn"}, ["--lora-targets: the model has no module 'c_attn'", "it has q_proj"]),
    "a rank above the hidden size": ({"lora_rank": 65}, ["--lora-rank: must be <= 64", "hidden size", "got 65"]),
}
# fmt: on


@pytest.mark.parametrize(("text", "words"), SETTINGS.values(), ids=SETTINGS)
def test_a_mistake_in_the_config_file_is_answered(text: str, words: list[str]) -> None:
    assert_tells(lambda: parse_settings(yaml.safe_load(text)), words)


@pytest.mark.parametrize(("options", "words"), PARAMETERS.values(), ids=PARAMETERS)
def test_a_mistake_in_a_parameter_is_answered(options: dict[str, Any], words: list[str]) -> None:
    assert_tells(lambda: parse_options(options), words)


@pytest.mark.parametrize(("options", "words"), TOGETHER.values(), ids=TOGETHER)
def test_a_contradiction_or_a_wrong_name_is_answered(options: dict[str, Any], words: list[str]) -> None:
    assert_tells(lambda: plan_of(**options), words)


@pytest.mark.parametrize(("launcher", "options", "words"), ON_NEURON.values(), ids=ON_NEURON)
def test_a_layout_that_the_backend_cannot_take_is_answered(
    launcher: dict[str, Any], options: dict[str, Any], words: list[str]
) -> None:
    assert_tells(lambda: plan_of({"launcher": launcher}, **options), words)


@pytest.mark.parametrize(("options", "words"), UNFIT.values(), ids=UNFIT)
def test_a_plan_that_the_model_cannot_take_is_answered(options: dict[str, Any], words: list[str]) -> None:
    plan: Plan = plan_of(**{"sequence_length": 64, **options})
    assert_tells(lambda: check_model(plan, LLAMA), words)


def test_several_mistakes_are_answered_at_once() -> None:
    message = told(lambda: plan_of(global_batch=5, micro_batch=2, max_steps=1, epochs=1, lora_targets=","))
    assert len(message.splitlines()) == 3
    message = told(lambda: parse_settings({"retry": {"max_attempts": 0}, "storag": {}, "merge": {"dtype": 3}}))
    assert len(message.splitlines()) == 3
