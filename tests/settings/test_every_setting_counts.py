"""No setting is without effect: each is read by the code of the backend that it is for, and each option changes the plan."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from steps.settings.config import Settings
from steps.settings.options import OPTIONS
from steps.settings.plan import LoraSettings, Plan, Training
from steps.train.spec import TrainSpec
from tests.shared.sample_records import plan_of

STEPS = Path(__file__).resolve().parents[2] / "steps"
TRAIN = STEPS / "train"
SHARED = [TRAIN / "worker.py", TRAIN / "loop", TRAIN / "spec.py"]
FOR_NEURON_ONLY = {"tensor_parallel", "pipeline_parallel", "compile_cache", "graphs_only"}
FOR_THE_LAUNCHER = {"report_to"}
"""Trackers are fed by the process that launches the workers."""

FOR_PEOPLE = {"gated"}
"""A preset says so to its readers; at run time the hub itself does."""


def attributes_read(*places: Path) -> set[str]:
    """Names after a dot in all code there, but for those that are only assigned."""
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.py")))]
    return {
        node.attr
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def fields_of(kind: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """(section, name) of every setting, sections within sections included."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields_of(inner)
        else:
            yield kind.__name__, name


@pytest.mark.parametrize("kind", [Settings, Plan])
def test_every_setting_is_read_somewhere(kind: type[BaseModel]) -> None:
    read = attributes_read(STEPS)
    assert [f"{section}.{name}" for section, name in fields_of(kind) if name not in read | FOR_PEOPLE] == []


@pytest.mark.parametrize("backend", ["pytorch", "neuron"])
def test_every_value_of_a_training_is_read_by_the_backend_or_refused(backend: str) -> None:
    read = attributes_read(*SHARED, TRAIN / backend)
    fields = {name for kind in (TrainSpec, Training, LoraSettings) for name in kind.model_fields}
    others = FOR_NEURON_ONLY if backend == "pytorch" else set()
    assert sorted(fields - read - others - FOR_THE_LAUNCHER - {"backend"}) == []


VALUES: dict[str, Any] = {
    "model": "smollm2-135m", "dataset": "alpaca", "columns": "prompt=a,completion=b", "max_steps": 7, "epochs": 3.0,
    "max_rows": 5,
    "chat_template": "TEMPLATE", "chat_template_kwargs": '{"enable_thinking": false}', "learning_rate": 0.5,
    "scheduler": "linear",
    "warmup_ratio": 0.3, "weight_decay": 0.2, "max_grad_norm": 0.7, "method": "dora", "lora_rank": 3, "lora_alpha": 5.0,
    "lora_dropout": 0.2, "lora_targets": "q_proj", "init_adapter": "ADAPTER", "sequence_length": 77, "packing": "on",
    "global_batch": 8, "micro_batch": 4, "gradient_checkpointing": "on", "precision": "bf16", "quantization": "4bit",
    "sharding": "fsdp", "processes": 2, "seed": 7, "validation_fraction": 0.3, "merge_dtype": "fp16", "continue_from": "17",
    "dry_run": True,
}  # fmt: skip


def test_every_option_is_tried() -> None:
    assert set(VALUES) == set(OPTIONS)


def test_every_backend_has_trackers() -> None:
    neuron = {"launcher": {"backend": "neuron"}, "reporting": {"report_to": ["tensorboard"]}}
    assert plan_of(neuron).settings.reporting.report_to == ("tensorboard",)


@pytest.mark.parametrize("name", sorted(VALUES))
def test_every_option_changes_the_plan(name: str, tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "r": 5, "lora_alpha": 7, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    files = {"ADAPTER": str(tmp_path), "TEMPLATE": str(tmp_path / "chat.jinja")}
    value = files.get(VALUES[name], VALUES[name]) if isinstance(VALUES[name], str) else VALUES[name]
    beside = {"processes": 2} if name == "sharding" else {}
    before = plan_of(**{"global_batch": 4, **beside}).model_dump(exclude={"given"})
    assert plan_of(**{"global_batch": 4, **beside, name: value}).model_dump(exclude={"given"}) != before
