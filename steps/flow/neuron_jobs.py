"""The jobs around a training on Trainium: before it all its graphs are compiled, after it the merged model.

Used by `stages`. Both run through the same supervisor as the training, as jobs of their own; what they run is in
`train/neuron_precompile` and `merge/compile`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.export import compile as compiling
from steps.export.compile import CompiledModel, CompileRequest
from steps.job.job import Job
from steps.protocol.records import MergedModel, identity_of
from steps.protocol.rundir import RunDir, TrainDir, read_json
from steps.settings.config import Settings
from steps.settings.options import DTYPES
from steps.settings.plan import Plan
from steps.train import stage as train_stage
from steps.train.neuron import precompile as neuron_precompile
from steps.train.spec import TrainSpec

if TYPE_CHECKING:
    from steps.flow.decorator import JobHandle

COMPILE_MODULE = "steps.export.worker"


def precompile(handle: JobHandle, training: Job, settings: Settings, facts: Mapping[str, object]) -> str:
    """Compile the graphs of a training before it begins; what came of it, in a sentence.

    Raises:
        JobError: a graph cannot be compiled, or none was collected; launcher.precompile: false goes without it.
    """
    job = precompile_job(training)
    result = handle.run(job, patient(settings), title=f"Compiling for {job.label}", facts=facts)
    return (
        "precompiled: "
        + neuron_precompile.Outcome(**read_json(result.result_dir / neuron_precompile.RECORD)).sentence()
    )


def precompile_job(training: Job) -> Job:
    """The job that collects and compiles the graphs of `training`: the same workers, in a directory of its own."""
    spec = neuron_precompile.precompile_spec(TrainSpec.from_dict(training.spec), world=training.world)
    return replace(
        training,
        spec=spec.to_dict(),
        directory=spec.place,
        identity=spec.identity,
        total_steps=spec.steps,
        node_choices=(),
        step="precompile",
        wrapper=train_stage.PRECOMPILE_WRAPPER,
    )


def patient(settings: Settings) -> Settings:
    """While graphs are compiled nothing is heard of the workers: that may take as long as a first step."""
    limit_s = settings.deadlines.first_step_s
    deadlines = settings.deadlines.model_copy(update={"step_gap_s": limit_s, "exit_s": limit_s})
    return settings.model_copy(update={"deadlines": deadlines})


def request_of(plan: Plan) -> CompileRequest:
    """What the settings ask of the compiled model."""
    given = plan.settings.inference
    return CompileRequest(
        batch_size=given.batch_size,
        sequence_length=given.sequence_length,
        tensor_parallel=given.tensor_parallel or plan.tensor_parallel,
        instance_type=given.instance_type or plan.settings.cluster.instance_type,
        dtype=DTYPES[given.dtype],
    )


def check_inference(plan: Plan, config: Mapping[str, Any]) -> None:
    """Before anything is fetched: can what is asked of the compiled model be had of this one? `config`: the model's config.json.

    Raises:
        ConfigError: with everything that does not go together; never where none is wanted.
    """
    if not plan.settings.inference.enabled:
        return
    request = request_of(plan)
    own = config.get("dtype") or config.get("torch_dtype") or request.dtype  # a preset does not say
    dtype = DTYPES.get(plan.merge_dtype, own)
    compiling.check_request(request, {**config, "dtype": dtype})


def compile_merged(handle: JobHandle, plan: Plan, merged: MergedModel, run: RunDir) -> CompiledModel:
    """Compile the merged model: on one node of the cluster, or here where there is none.

    Raises:
        ConfigError: request and model do not go together.
        JobError, ModelError: the compiler failed.
        StorageError: no room.
    """
    request = request_of(plan)
    compiling.check_request(request, read_json(Path(merged.path) / "config.json"))
    identity = identity_of({"merged": merged.digest, **request.to_dict()})
    out, parents = run.path / f"compiled-{identity}", {"merged": merged.digest}
    if not plan.settings.is_on_cluster:
        return compiling.compile_model(Path(merged.path), out, request, parents=parents)
    job = compile_job(plan, merged, request, run, identity)
    limit_s = plan.settings.inference.limit_s
    deadlines = plan.settings.deadlines.model_copy(update={"first_step_s": limit_s})
    settings = plan.settings.model_copy(update={"deadlines": deadlines})
    facts = {"model": merged.path, **request.to_dict()}
    result = handle.run(job, settings, title=f"Compiling {job.label}", facts=facts)
    return CompiledModel.from_dict(read_json(result.result_dir / compiling.RECORD))


def compile_job(plan: Plan, merged: MergedModel, request: CompileRequest, run: RunDir, identity: str) -> Job:
    """One process on one node."""
    spec = {
        "merged": merged.path,
        "out": str(run.path / f"compiled-{identity}"),
        "request": request.to_dict(),
        "parents": {"merged": merged.digest},
    }
    return Job(
        module=COMPILE_MODULE,
        spec=spec,
        directory=TrainDir(run.path / f"compile-{identity}"),
        identity=identity,
        total_steps=1,
        environment=train_stage.process_environment(plan),
        label=f"{plan.model.name}-{plan.dataset.name}",
        step="compile",
    )


def describe(compiled: CompiledModel) -> str:
    """For people."""
    if compiled.skipped:
        return f"not compiled: {compiled.skipped}; this would do it: {compiled.command}"
    return f"compiled model: {compiled.path}, {compiled.bytes / 2**30:.1f} GiB; loading needs its instance type and as many cores"
