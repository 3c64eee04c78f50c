"""The train stage's door: intervals, identity, the spec and the record of what came out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import CheckpointError, ConfigError, StorageError
from steps.protocol.events import EventWriter
from steps.protocol.prepared import ROWS, read_record
from steps.protocol.records import BaseModel
from steps.protocol.rundir import RunDir
from steps.settings.config import Checkpoints, Launcher, Settings, Validation
from steps.settings.options import Options
from steps.settings.plan import Training
from steps.settings.resolve import resolve
from steps.train.spec import TrainSpec, read_spec
from steps.train.stage import build, checkpoint_interval, collect, validation_interval, validation_rows
from tests.train.train_harness import write_prepared

BASE = BaseModel(
    name="tiny", path="/base", source="random:0", revision="r", digest="d" * 64, model_type="llama", parameters=1, bytes=1,
    dtype="float32",
)  # fmt: skip
GIVEN = {"model": "tiny", "global_batch": 8, "sequence_length": 128, "packing": "off", "max_steps": 10}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage") / "prepared"
    write_prepared(folder, steps=10, global_batch=8)
    return folder


def spec_of(prepared: Path, settings: Settings | None = None, base: BaseModel = BASE, **options: Any) -> TrainSpec:
    plan = resolve(settings or Settings(), Options(**{**GIVEN, **options}))
    return build(plan, base, read_record(prepared), RunDir(Path("/run")))[0]


@pytest.mark.parametrize(
    ("asked", "steps", "expected"),
    [
        pytest.param(0, 30, 10, id="never under 10"),
        pytest.param(0, 1000, 100, id="a tenth"),
        pytest.param(0, 100_000, 500, id="never over 500"),
        pytest.param(7, 1000, 7, id="as asked"),
    ],
)
def test_steps_between_saves(asked: int, steps: int, expected: int) -> None:
    assert checkpoint_interval(asked, steps) == expected


@pytest.mark.parametrize(("asked", "steps", "expected"), [(0, 30, 10), (0, 1000, 200), (7, 1000, 7), (0, 12, 12)])
def test_steps_between_validations(asked: int, steps: int, expected: int) -> None:
    assert validation_interval(asked, steps) == expected


@pytest.mark.parametrize(
    ("steps", "validation", "expected"),
    [
        pytest.param(16, {}, 8, id="never under 8"),
        pytest.param(48, {}, 24, id="a sixteenth of the rows trained on"),
        pytest.param(1000, {}, 32, id="never more than asked"),
        pytest.param(16, {"max_rows": 5}, 5, id="asked for fewer"),
        pytest.param(16, {"keep": "best"}, 32, id="validation decides"),
    ],
)
def test_a_short_run_validates_on_few_rows(
    prepared: Path, steps: int, validation: dict[str, Any], expected: int
) -> None:
    record = dataclasses.replace(read_record(prepared), steps=steps, validation_samples=100)
    plan = resolve(Settings(validation=Validation(**validation)), Options(**GIVEN))
    assert validation_rows(plan, record) == expected


ALL_GIVEN = {
    "learning_rate": 0.01, "scheduler": "linear", "warmup_ratio": 0.2, "weight_decay": 0.1, "max_grad_norm": 2.0,
    "lora_rank": 2, "lora_alpha": 3.0, "lora_dropout": 0.2, "lora_targets": "q_proj,v_proj", "method": "rslora",
    "seed": 7, "precision": "bf16", "quantization": "4bit", "micro_batch": 1, "gradient_checkpointing": "on",
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "validation", "expected"),
    [
        pytest.param({}, {}, "b0d17014193d", id="defaults"),
        pytest.param(ALL_GIVEN, {}, "5f6f850b3f45", id="every option given"),
        pytest.param(
            {},
            {"keep": "best", "early_stopping_patience": 2, "max_rows": 10000},
            "a852e0f3dc5a",
            id="validation decides",
        ),
    ],
)
def test_the_identity_stays(prepared: Path, options: dict[str, Any], validation: dict[str, Any], expected: str) -> None:
    """Digests from before `Training` was a section. Another value would hide the checkpoints of all earlier runs."""
    settings = Settings(validation=Validation(**validation))
    plan = resolve(settings, Options(**{**GIVEN, **options}))
    record = dataclasses.replace(read_record(prepared), digest="p" * 64)
    assert build(plan, BASE, record, RunDir(Path("/run")))[0].identity == expected


def test_a_spec_of_version_0_1_is_read_and_written_back_as_it_was(prepared: Path) -> None:
    flat = Path(__file__).with_name("spec-flat.json")
    spec = read_spec(flat)
    assert spec.training.lora.targets == ("q_proj", "v_proj")
    assert spec.training.seed == 7
    assert spec.to_dict() == json.loads(flat.read_text())


def test_a_field_of_the_training_is_in_the_identity_unless_it_is_marked_as_layout() -> None:
    values = resolve(Settings(), Options(**GIVEN)).training.identity_values()
    assert set(Training.model_fields) - set(values) == {"micro_batch", "gradient_checkpointing", "sharding"}


def test_a_field_added_later_leaves_the_identity_until_it_is_given() -> None:
    class Later(Training):
        label_smoothing: float = 0.0

    training = resolve(Settings(), Options(**GIVEN)).training
    later = Later.model_validate(training.model_dump())
    assert later.identity_values() == training.identity_values()
    smoothed = later.model_copy(update={"label_smoothing": 0.1})
    assert smoothed.identity_values() == {**training.identity_values(), "label_smoothing": 0.1}


@pytest.mark.parametrize(
    "options",
    [{"processes": 2}, {"micro_batch": 1}, {"gradient_checkpointing": "on"}, {"sharding": "fsdp", "processes": 2}],
    ids=str,
)
def test_how_it_is_computed_is_not_in_the_identity(prepared: Path, options: dict[str, Any]) -> None:
    assert spec_of(prepared, **options).identity == spec_of(prepared).identity


def test_nor_are_intervals_and_deadlines(prepared: Path) -> None:
    settings = Settings(
        checkpoints=Checkpoints(every_steps=3, keep=9),
        validation=Validation(every_steps=3),
        launcher=Launcher(threads_per_process=1),
    )
    assert spec_of(prepared, settings).identity == spec_of(prepared).identity


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.5},
        {"scheduler": "linear"},
        {"warmup_ratio": 0.2},
        {"weight_decay": 0.1},
        {"max_grad_norm": 2.0},
        {"lora_rank": 2},
        {"lora_alpha": 3.0},
        {"lora_dropout": 0.2},
        {"lora_targets": "q_proj"},
        {"method": "dora"},
        {"seed": 7},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_what_changes_the_mathematics_changes_the_identity(prepared: Path, options: dict[str, Any]) -> None:
    assert spec_of(prepared, **options).identity != spec_of(prepared).identity


def test_another_base_or_a_validation_that_decides_change_the_identity(prepared: Path) -> None:
    other = BaseModel.from_dict({**BASE.to_dict(), "digest": "e" * 64})
    deciding = Settings(validation=Validation(keep="best"))
    assert (
        len({spec_of(prepared).identity, spec_of(prepared, base=other).identity, spec_of(prepared, deciding).identity})
        == 3
    )


ADAPTER_CONFIG = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}'


def test_the_adapter_to_start_from_counts_by_its_content(prepared: Path, tmp_path: Path) -> None:
    identities = []
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(ADAPTER_CONFIG)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        identities.append(spec_of(prepared, init_adapter=str(folder)).identity)
    assert identities[0] == identities[1] != identities[2]


def test_an_adapter_without_weights_is_refused_by_name(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(ADAPTER_CONFIG)
    with pytest.raises(ConfigError, match=r"--init-adapter: no .*adapter_model.safetensors"):
        spec_of(prepared, init_adapter=str(tmp_path))


def test_a_plan_that_the_data_was_not_prepared_for_names_every_difference(prepared: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(prepared, global_batch=4, sequence_length=64)
    assert [problem.path for problem in caught.value.problems] == ["--global-batch", "--sequence-length"]


def test_changed_rows_are_found_before_anything_is_submitted(tmp_path: Path) -> None:
    write_prepared(tmp_path / "prepared", steps=10, global_batch=8)
    with (tmp_path / "prepared" / ROWS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(StorageError, match=r"rows.arrow was changed"):
        spec_of(tmp_path / "prepared")


def test_the_adapter_names_a_base_that_can_be_found(prepared: Path) -> None:
    """And the spec is as it always was, so that a job which an earlier version began is found again."""
    hub, local = (spec_of(prepared, base=replace(BASE, source=source)) for source in ("hub:owner/name", "wheel:demo"))
    assert (hub.base_name, hub.findable_base) == ("owner/name", "owner/name")
    assert (local.base_name, local.findable_base) == (BASE.name, BASE.path)


def test_the_spec_reads_back(prepared: Path, tmp_path: Path) -> None:
    spec = spec_of(prepared)
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    assert read_spec(tmp_path / "spec.json") == spec


def test_a_spec_of_another_version_is_refused(prepared: Path) -> None:
    with pytest.raises(ConfigError, match="expected schema 'hyperpod-lora/train-spec/1', got 'other'"):
        TrainSpec.from_dict({**spec_of(prepared).to_dict(), "schema": "other"})


def test_a_published_adapter_becomes_a_record(prepared: Path, tmp_path: Path) -> None:
    spec = spec_of(prepared).model_copy(update={"directory": str(tmp_path)})
    for attempt, steps in ((1, (1, 2, 3)), (2, (3, 4))):
        events = EventWriter(spec.place.events(attempt), attempt=attempt)
        for step in steps:
            events.emit("step", step, loss=10.0 * attempt - step)
    adapter = spec.place.adapter
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "training.json").write_text(json.dumps({"step": 4, "validation_loss": 1.5}))
    record = collect(spec, adapter, attempts=2, account={"goodput": 1}, layout={"world": 2})
    assert (record.first_loss, record.last_loss, record.validation_loss, record.step) == (9.0, 16.0, 1.5, 4)
    assert record.parents == {"base": BASE.digest, "prepared": spec.prepared_digest}
    lora = spec.training.lora.model_copy(update={"init_adapter": str(adapter)})
    started = spec.model_copy(update={"training": spec.training.model_copy(update={"lora": lora})})
    assert "init_adapter" in collect(started, adapter, attempts=2, account={}, layout={}).parents


def test_half_an_adapter_is_no_adapter(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no adapter_config.json, adapter_model.safetensors"):
        collect(spec_of(prepared), tmp_path, attempts=1, account={}, layout={})


def test_the_door_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, steps.train.stage; print(sorted({'torch', 'transformers', 'peft', 'pyarrow'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert said.stdout.strip() == "[]"
