"""The train stage's door: a plan becomes a spec, and a finished training becomes an Adapter record.

Called by the flow; loads neither torch nor transformers. Running the worker on what `build` returns is the job room's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.errors import CheckpointError, ConfigError, Problem
from steps.protocol.events import Event, EventTail
from steps.protocol.prepared import MANIFEST, verify
from steps.protocol.records import Adapter, BaseModel, PreparedData, digest_file, digest_of, identity_of
from steps.protocol.rundir import RunDir, TrainDir, read_json, storage_errors
from steps.protocol.tokenizer_files import ARGUMENTS, copy_tokenizer, make_usable
from steps.settings.plan import LoraSettings, Plan
from steps.train.neuron.planning import plan as neuron_plan
from steps.train.neuron.planning.refusals import check_training
from steps.train.spec import TrainSpec
from steps.train.torchneuron import planning as torchneuron_plan

LEAST_VALIDATED, TRAINED_PER_VALIDATED = 8, 16
"""A row costs half as much in a validation as in a step, and there are up to five validations: a sixth of the time at most."""
WORKER = "steps.train.worker"
"""The module that every rank runs: `python -m steps.train.worker <directory>/spec.json --attempt N`."""

SCHEDULE = 2
"""Of the rates in `loop/schedule.py`; 1 were transformers' own, whose first step has the rate 0."""

PROCESS_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Of ranks that compute on the CPU or a GPU: glibc would give each step's memory back and fault it in again. On Neuron a host's
memory is what runs out (32 ranks load and save side by side), so there it is given back as usual."""

PRECOMPILE_WRAPPER = "steps.train.neuron.precompile"
"""The module that runs torchrun's command line in the precompile job."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PLANNED: dict[str, Any] = {"neuron": neuron_plan, "torchneuron": torchneuron_plan}
"""Backends that have something to decide by the model and the instance type, each with its module."""


def lay_out(plan: Plan, config: Mapping[str, Any]) -> Plan:
    """The plan with every process accounted for; torch's is so already. `config`: the model's config.json.

    Raises:
        ConfigError: with everything that the backend cannot do.
    """
    how = PLANNED.get(plan.settings.launcher.backend)
    laid_out: Plan = how.lay_out(plan, config) if how else plan
    return laid_out


def process_environment(plan: Plan) -> dict[str, str]:
    """Of every rank, to be set before it starts."""
    how = PLANNED.get(plan.settings.launcher.backend)
    found: dict[str, str] = how.process_environment(plan) if how else PROCESS_ENVIRONMENT
    return found


def needs_torchrun(plan: Plan) -> bool:
    """Whether a single process needs torchrun's environment as well: Neuron's runtime and a process group of one do."""
    return plan.settings.launcher.backend == "neuron" or plan.training.sharding == "fsdp"


def notes(plan: Plan) -> dict[str, str]:
    """What a person who reads the job's manifest should know of this training; name → words."""
    how = PLANNED.get(plan.settings.launcher.backend)
    found: dict[str, str] = how.notes(plan) if how else {}
    return found


def build(plan: Plan, base: BaseModel, prepared: PreparedData, run: RunDir) -> tuple[TrainSpec, TrainDir]:
    """Decide all that a rank needs to know, and where it goes; writes nothing.

    Raises:
        ConfigError: plan and prepared data contradict each other, or the neuron backend cannot do what is asked.
        StorageError: the prepared data, or the adapter to start from, is damaged or gone.
    """
    _require_match(plan, prepared)
    verify(Path(prepared.path))
    settings = plan.settings
    unnamed = TrainSpec(
        directory="",
        identity="",
        base_path=base.path,
        base_digest=base.digest,
        base_name=base.source.removeprefix("hub:") if base.source.startswith("hub:") else base.name,
        prepared_path=prepared.path,
        prepared_digest=prepared.digest,
        steps=prepared.steps,
        training=plan.training,
        sequence_length=prepared.sequence_length,
        packed=prepared.packed,
        backend=settings.launcher.backend,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        compile_cache=settings.launcher.compile_cache,
        checkpoint_every=checkpoint_interval(settings.checkpoints.every_steps, prepared.steps),
        checkpoints_kept=settings.checkpoints.keep,
        validation_every=validation_interval(settings.validation.every_steps, prepared.steps),
        validation_rows=validation_rows(plan, prepared),
        patience=settings.validation.early_stopping_patience,
        keep=settings.validation.keep,
        threads_per_process=settings.launcher.threads_per_process,
    )
    identity = _identity(unnamed, max_rows=settings.validation.max_rows)
    place = run.train(identity)
    spec = unnamed.model_copy(update={"directory": str(place.path), "identity": identity})
    if spec.backend == "neuron":
        check_training(spec, read_json(Path(base.path) / "config.json"), world=plan.world)
    return spec, place


def _require_match(plan: Plan, prepared: PreparedData) -> None:
    problems = [
        Problem(option, f"the data was prepared for {found}, the plan says {planned}; prepare again")
        for option, found, planned in (
            ("--global-batch", prepared.global_batch, plan.training.global_batch),
            ("--packing", prepared.packed, plan.packing),
            ("--sequence-length", prepared.sequence_length, plan.sequence_length),
        )
        if found != planned
    ]
    if problems:
        raise ConfigError(problems)


def checkpoint_interval(asked: int, steps: int) -> int:
    """Steps between saves: as asked, or a tenth of the run between 10 and 500."""
    return asked or min(max(steps // 10, 10), 500)


def validation_interval(asked: int, steps: int) -> int:
    """Steps between validations: as asked, or a fifth of the run, at least 10; a run of less than 20 is validated at its end."""
    return asked or (max(steps // 5, 10) if steps >= 20 else steps)


def validation_rows(plan: Plan, prepared: PreparedData) -> int:
    """Held-out rows of a validation. In a short run few, so that validations take little of its time, unless they decide."""
    rows = plan.validation_rows(prepared.validation_samples)
    if plan.chooses_by_validation:
        return rows
    trained = prepared.steps * prepared.global_batch
    return min(rows, max(LEAST_VALIDATED, trained // TRAINED_PER_VALIDATED))


def _identity(spec: TrainSpec, *, max_rows: int) -> str:
    """Digest of what changes the mathematics, with the adapter to start from by its content.

    `max_rows` of a validation that decides counts as asked for, though fewer rows may be there: so it was always digested.
    """
    values = {**spec.identity_values(), "schedule": SCHEDULE}
    values["lora"]["init_adapter"] = _digest_of_start(spec.training.lora)
    if values["validation"]:
        values["validation"]["rows"] = max_rows
    return identity_of(values)


def _digest_of_start(lora: LoraSettings) -> str:
    if not lora.init_adapter:
        return ""
    files = [Path(lora.init_adapter, name) for name in ADAPTER_FILES]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ConfigError([Problem("--init-adapter", f"no {', '.join(missing)}: expected a PEFT adapter folder")])
    return digest_of({file.name: digest_file(file) for file in files})


def collect(
    spec: TrainSpec, adapter_dir: Path, *, attempts: int, account: dict[str, Any], layout: dict[str, Any]
) -> Adapter:
    """The record of a published adapter; puts the tokenizer and the chat template that it was trained with beside it.

    Raises:
        CheckpointError: the folder is not what a worker exports.
        StorageError: training.json is missing or unreadable, or the disk refused.
    """
    missing = [name for name in ADAPTER_FILES if not (adapter_dir / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{adapter_dir} has no {', '.join(missing)}: the training did not publish a whole adapter"
        )
    training = read_json(adapter_dir / "training.json")
    with storage_errors(f"writing {adapter_dir}"):
        copy_tokenizer(Path(spec.base_path), adapter_dir)
        prepared = read_json(Path(spec.prepared_path) / MANIFEST)
        make_usable(adapter_dir, str(prepared.get("chat_template") or ""), prepared.get(ARGUMENTS))
    losses = _losses(spec, attempts)
    return Adapter(
        path=str(adapter_dir),
        identity=spec.identity,
        digest=digest_of({name: digest_file(adapter_dir / name) for name in ADAPTER_FILES}),
        method=spec.training.lora.method,
        rank=spec.training.lora.rank,
        step=int(training["step"]),
        of=spec.steps,
        first_loss=losses[min(losses)] if losses else float("nan"),
        last_loss=losses[max(losses)] if losses else float("nan"),
        validation_loss=training["validation_loss"],
        attempts=attempts,
        bytes=sum(file.stat().st_size for file in adapter_dir.iterdir() if file.is_file()),
        layout=layout,
        account=account,
        parents={"base": spec.base_digest, "prepared": spec.prepared_digest, **_start_of(spec.training.lora)},
    )


def _start_of(lora: LoraSettings) -> dict[str, str]:
    """The adapter that training went on from, if it is still there."""
    if not lora.init_adapter or not all(Path(lora.init_adapter, name).is_file() for name in ADAPTER_FILES):
        return {}
    return {"init_adapter": _digest_of_start(lora)}


def _losses(spec: TrainSpec, attempts: int) -> dict[int, float]:
    """Loss by step, a later attempt's where two did the same step."""
    events: list[Event] = []
    for attempt in range(1, attempts + 1):
        events += EventTail(spec.place.events(attempt)).read_new()
    return {event.step: float(event.data["loss"]) for event in events if event.kind == "step" and "loss" in event.data}
