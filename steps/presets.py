"""`resolve`: Settings × Options × presets → one Plan with every value decided.

An option given wins over the data preset, that over the model preset. Called by the flow's `start` step and by the command line;
fetches nothing.
"""

from __future__ import annotations

from typing import Any

from steps.catalog import DatasetPreset, ModelPreset, find_dataset, find_model, find_path
from steps.config import Settings
from steps.contradictions import contradictions
from steps.errors import ConfigError, Problem
from steps.instances import find_instance
from steps.options import AUTO, Options
from steps.plan import LoraSettings, Plan


def resolve(settings: Settings, options: Options) -> Plan:
    """Decide every value: an option given wins over the data preset, that over the model preset.

    Raises:
        ConfigError: with every contradiction found.
    """
    model, dataset = _find_both(settings, options)
    plan = _decide(settings, options, model, dataset)
    problems = contradictions(plan, options)
    if problems:
        raise ConfigError(problems)
    return plan


def _find_both(settings: Settings, options: Options) -> tuple[ModelPreset, DatasetPreset]:
    problems: list[Problem] = []
    found: list[Any] = []
    for find, given in ((find_model, options.model), (find_dataset, options.dataset)):
        try:
            found.append(find(given))
        except ConfigError as error:
            note = _where_steps_run(settings) if "/" in given else ""
            problems.extend(Problem(item.path, item.message + note) for item in error.problems)
    if problems:
        raise ConfigError(problems)
    return found[0], found[1]


def _where_steps_run(settings: Settings) -> str:
    """What explains that a file which is there was not found."""
    if not settings.is_on_cluster or not settings.cluster.steps.enabled:
        return ""
    return f"; steps run in pods, which see {settings.cluster.mount_path} and no file of the machine that launched them"


def _decide(settings: Settings, options: Options, model: ModelPreset, dataset: DatasetPreset) -> Plan:
    rank = options.lora_rank or model.lora_rank
    targets = model.lora_targets if options.lora_targets == AUTO else options.lora_targets
    asked = options.max_steps or options.epochs
    return Plan(
        model=model,
        dataset=dataset,
        settings=settings,
        lora=LoraSettings(
            method="lora" if options.method == AUTO else options.method,
            rank=rank,
            alpha=options.lora_alpha or 2.0 * rank,
            dropout=options.lora_dropout,
            targets=tuple(name.strip() for name in targets.split(",") if name.strip()),
            init_adapter=""
            if options.init_adapter == AUTO
            else str(find_path(options.init_adapter) or options.init_adapter),
        ),
        learning_rate=options.learning_rate or model.learning_rate,
        scheduler="cosine" if options.scheduler == AUTO else options.scheduler,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        max_steps=options.max_steps if asked else dataset.max_steps,
        epochs=options.epochs if asked else dataset.epochs,
        max_rows=options.max_rows,
        sequence_length=options.sequence_length or dataset.sequence_length or model.sequence_length,
        packing=dataset.packing if options.packing == AUTO else options.packing == "on",
        global_batch=options.global_batch or dataset.global_batch or model.global_batch,
        micro_batch=options.micro_batch or model.micro_batch,
        processes=options.processes or _default_processes(settings),
        tensor_parallel=settings.launcher.tensor_parallel or int(settings.launcher.backend == "torch"),
        pipeline_parallel=settings.launcher.pipeline_parallel,
        gradient_checkpointing=model.gradient_checkpointing
        if options.gradient_checkpointing == AUTO
        else options.gradient_checkpointing == "on",
        precision=model.precision if options.precision == AUTO else options.precision,
        quantization="none" if options.quantization == AUTO else options.quantization,
        sharding="ddp" if options.sharding == AUTO else options.sharding,
        seed=options.seed,
        validation_fraction=options.validation_fraction,
        continue_from="" if options.continue_from == AUTO else options.continue_from,
        dry_run=options.dry_run,
    )


def _default_processes(settings: Settings) -> int:
    """One; left open where a Neuron instance is named, since the layout knows how many of its cores the training can feed."""
    is_known = find_instance(settings.cluster.instance_type) is not None
    return 0 if settings.launcher.backend == "neuron" and is_known else 1
