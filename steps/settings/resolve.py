"""`resolve`: Settings × Options × presets → one Plan with every value decided.

An option given wins over the data preset, that over the model preset. Called by the flow's `start` step and by the command line;
fetches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from steps.errors import ConfigError, Mistakes, Problem
from steps.settings.catalog import DatasetPreset, ModelPreset, PresetT, find_model, find_path
from steps.settings.checks import contradictions
from steps.settings.config import Settings
from steps.settings.init_adapter import settings_of
from steps.settings.instances import find_instance
from steps.settings.mixture import each_source, find_data, template_problems
from steps.settings.options import AUTO, Method, Options, Precision
from steps.settings.plan import LoraSettings, Plan, Training
from steps.settings.templates import chosen_arguments, chosen_template

BY_PRESETS = ("--global-batch", "--lora-targets")
"""What contradicts a value that a preset may have given."""
RSLORA_ALPHA = 8.0
SLOW_BF16 = "a processor without AVX512-BF16 and AMX has no fast bf16"


Look = Callable[[DatasetPreset], None]


def resolve(settings: Settings, options: Options, *, fast_bf16: bool = False, look: Look | None = None) -> Plan:
    """Decide every value: an option given wins over the data preset, that over the model preset.

    `fast_bf16`: whether this machine's device computes in bf16 at full speed; asked only where the training runs here. `look` is
    shown the data set, and raises a ConfigError where it is wrong.

    Raises:
        ConfigError: with every mistake and every contradiction found.
    """
    mistakes = Mistakes()
    model = mistakes.look(lambda: _found(find_model, settings, options.model), ModelPreset())
    dataset = mistakes.look(lambda: _found(find_data, settings, options.dataset), DatasetPreset())
    are_known = not mistakes.problems
    dataset = mistakes.look(partial(_with_columns, dataset, options.columns), dataset)
    if look:
        mistakes.look(partial(look, dataset), None)
    lora = mistakes.look(lambda: _lora(options, model), _fresh(options, model))
    precision = _precision(settings, options, model, fast_bf16=fast_bf16)
    training = _training(options, (model, dataset), lora, precision=precision)
    plan = _decide(settings, options, (model, dataset), training, fast_bf16=fast_bf16)
    template = mistakes.look(lambda: chosen_template(options, model, dataset), "")
    nothing: dict[str, Any] = {}
    arguments = mistakes.look(lambda: chosen_arguments(options, model, dataset), nothing)
    plan = plan.model_copy(update={"chat_template": template, "chat_template_kwargs": arguments})
    found = [*contradictions(plan, options), *template_problems(dataset, options)]
    mistakes.problems += found if are_known else [problem for problem in found if problem.path not in BY_PRESETS]
    mistakes.tell()
    return plan


def _found(find: Callable[[str], PresetT], settings: Settings, given: str) -> PresetT:
    """The preset, or what else the name stands for; where steps run in pods, that explains why a file is not found."""
    try:
        return find(given)
    except ConfigError as error:
        note = _where_steps_run(settings) if "/" in given else ""
        raise ConfigError([Problem(item.path, item.message + note) for item in error.problems]) from error


def _with_columns(dataset: DatasetPreset, given: str) -> DatasetPreset:
    """The preset with the columns that the command line names; those that it does not name stay."""
    if given == AUTO:
        return dataset
    named = [item.partition("=") for item in given.split(",") if item.strip()]
    wrong = [part + sign + column for part, sign, column in named if not (part.strip() and column.strip())]
    if wrong or not named:
        what = f"expected part=column pairs, as in prompt=text,answer=label, got {given!r}"
        raise ConfigError([Problem("--columns", what)])
    chosen = {part.strip(): column.strip() for part, _, column in named}
    return each_source(dataset, lambda one: one.model_copy(update={"columns": {**one.columns, **chosen}}))


def _where_steps_run(settings: Settings) -> str:
    """What explains that a file which is there was not found."""
    if not settings.is_on_cluster or not settings.cluster.steps.enabled:
        return ""
    return f"; steps run in pods, which see {settings.cluster.mount_path} and no file of the machine that launched them"


def _lora(options: Options, model: ModelPreset) -> LoraSettings:
    """Of the adapter to start from, where there is one."""
    start = find_path(options.init_adapter) if options.init_adapter != AUTO else None
    if start is None or not (start / "adapter_config.json").is_file():
        return _fresh(options, model)  # a path that leads nowhere is told by `checks`
    return settings_of(start, options)


def _fresh(options: Options, model: ModelPreset) -> LoraSettings:
    method: Method = "lora" if options.method == "auto" else options.method
    rank = options.lora_rank or model.lora_rank
    targets = model.lora_targets if options.lora_targets == AUTO else options.lora_targets
    return LoraSettings(
        method=method,
        rank=rank,
        alpha=options.lora_alpha or default_alpha(method, rank),
        dropout=options.lora_dropout,
        targets=tuple(name.strip() for name in targets.split(",") if name.strip()),
        init_adapter=""
        if options.init_adapter == AUTO
        else str(find_path(options.init_adapter) or options.init_adapter),
    )


def default_alpha(method: Method, rank: int) -> float:
    """Twice the rank: the update is scaled by alpha / rank = 2 at every rank. rsLoRA scales by alpha / √rank, so that alpha need
    not follow the rank (Kalajdzievski 2023, arXiv:2312.03732): 8, which gives the same 2 at the usual rank of 16."""
    return RSLORA_ALPHA if method == "rslora" else 2.0 * rank


def _decide(
    settings: Settings,
    options: Options,
    presets: tuple[ModelPreset, DatasetPreset],
    training: Training,
    *,
    fast_bf16: bool,
) -> Plan:
    model, dataset = presets
    asked = options.max_steps or options.epochs
    return Plan(
        model=model,
        dataset=dataset,
        settings=settings,
        training=training,
        max_steps=options.max_steps if asked else dataset.max_steps,
        epochs=options.epochs if asked else dataset.epochs,
        max_rows=options.max_rows,
        sequence_length=options.sequence_length or dataset.sequence_length or model.sequence_length,
        packing=dataset.packing if options.packing == AUTO else options.packing == "on",
        processes=options.processes or _default_processes(settings),
        tensor_parallel=settings.launcher.tensor_parallel or int(settings.launcher.backend != "neuron"),
        pipeline_parallel=settings.launcher.pipeline_parallel,
        precision_reason=_about(training.precision, settings, fast_bf16=fast_bf16),
        validation_fraction=options.validation_fraction,
        merge_dtype=settings.merge.dtype if options.merge_dtype == AUTO else options.merge_dtype,
        given=tuple(name for name, value in asdict(options).items() if value != asdict(Options())[name]),
        continue_from="" if options.continue_from == AUTO else options.continue_from,
        dry_run=options.dry_run,
    )


def _training(
    options: Options, presets: tuple[ModelPreset, DatasetPreset], lora: LoraSettings, *, precision: Precision
) -> Training:
    (model, dataset), checkpointing = presets, options.gradient_checkpointing
    return Training(
        learning_rate=options.learning_rate or model.learning_rate,
        scheduler="cosine" if options.scheduler == AUTO else options.scheduler,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        lora=lora,
        global_batch=options.global_batch or dataset.global_batch or model.global_batch,
        micro_batch=options.micro_batch or model.micro_batch,
        gradient_checkpointing=model.gradient_checkpointing if checkpointing == AUTO else checkpointing == "on",
        precision=precision,
        quantization="none" if options.quantization == AUTO else options.quantization,
        sharding="ddp" if options.sharding == AUTO else options.sharding,
        seed=options.seed,
    )


def _precision(settings: Settings, options: Options, model: ModelPreset, *, fast_bf16: bool) -> Precision:
    """As asked, else as the preset says, else bf16 where the training's device is fast at it. Torch in pods computes on CPUs."""
    for wanted in (options.precision, model.precision):
        if wanted != "auto":
            return wanted
    return "bf16" if _computes_bf16(settings, fast_bf16) else "fp32"


def _computes_bf16(settings: Settings, fast_bf16: bool) -> bool:
    return settings.launcher.backend != "torch" or (fast_bf16 and not settings.is_on_cluster)


def _about(precision: Precision, settings: Settings, *, fast_bf16: bool) -> str:
    """What a person should know of the precision; empty where there is nothing to choose."""
    if _computes_bf16(settings, fast_bf16):
        return ""
    if precision == "bf16":
        return f"{SLOW_BF16}, where a step in bf16 took 27 times as long as in fp32: --precision fp32 is the quick one"
    return SLOW_BF16


def _default_processes(settings: Settings) -> int:
    """One; left open where a Neuron instance is named, since the layout knows how many of its cores the training can feed."""
    is_known = find_instance(settings.cluster.instance_type) is not None
    return 0 if settings.launcher.backend != "torch" and is_known else 1
