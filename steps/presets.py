"""`resolve`: Settings × Options × presets → one Plan with every value decided.

An option given wins over the data preset, that over the model preset. `check_model` holds a plan against the model's own
config.json. Called by the flow's `start` step and by the command line; fetches nothing.
"""

from __future__ import annotations

from typing import Any

from steps.catalog import (
    ALL_LINEAR,
    DatasetPreset,
    ModelPreset,
    RandomModel,
    Wheel,
    config_root,
    find_dataset,
    find_model,
    find_path,
    preset_names,
    project_root,
)
from steps.cluster import hidden_paths
from steps.config import AUTO, Method, Options, Precision, Quantization, Scheduler, Settings, Sharding
from steps.errors import ConfigError, Problem
from steps.instances import find_instance
from steps.validation import Section, suggest

__all__ = [
    "ALL_LINEAR",
    "DatasetPreset",
    "ModelPreset",
    "RandomModel",
    "Wheel",
    "config_root",
    "find_dataset",
    "find_model",
    "preset_names",
    "project_root",
]  # used from here by the rooms

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3", "granite", "gemma", "gemma2", "gemma3_text", "smollm3"})
"""model_type values whose decoder layers name their linear modules as Llama does."""
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraSettings(Section):
    """The adapter's shape."""

    method: Method
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    """Module names, or the single word `all-linear`."""
    init_adapter: str = ""
    """PEFT folder to start from; empty: fresh."""


class Plan(Section):
    """Every decision of a run. Kept as an artifact (`model_dump(mode='json')`)."""

    model: ModelPreset
    dataset: DatasetPreset
    settings: Settings
    lora: LoraSettings
    learning_rate: float
    scheduler: Scheduler
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_steps: int
    """0: `epochs` decides, once the rows are counted."""
    epochs: float
    max_rows: int
    sequence_length: int
    packing: bool
    global_batch: int
    micro_batch: int
    processes: int
    """Per node; 0 until `train.stage.lay_out` has chosen."""
    tensor_parallel: int
    """Processes that share each layer of one replica; 0 until `train.stage.lay_out` has chosen."""
    layout: tuple[str, ...] = ()
    """Why these processes and this tensor parallelism, in words."""
    gradient_checkpointing: bool
    precision: Precision
    quantization: Quantization
    sharding: Sharding
    seed: int
    validation_fraction: float
    continue_from: str = ""
    dry_run: bool = False

    @property
    def accumulation(self) -> int:
        """Micro-batches that each process adds up for one optimizer step."""
        return self.global_batch // (self.replicas * self.micro_batch)

    @property
    def nodes(self) -> int:
        """Machines of the training."""
        return self.settings.cluster.nodes if self.settings.is_on_cluster else 1

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes

    @property
    def replicas(self) -> int:
        """Copies of the model that take rows of their own."""
        return self.world // max(self.tensor_parallel, 1)

    @property
    def is_laid_out(self) -> bool:
        """Processes and tensor parallelism are decided."""
        return bool(self.processes and self.tensor_parallel)

    @property
    def node_choices(self) -> tuple[int, ...]:
        """Numbers of nodes between `cluster.nodes` and `cluster.min_nodes` that the global batch can feed, the largest first."""
        if self.nodes == 1:
            return (1,)
        rows = self.processes * self.micro_batch // max(self.tensor_parallel, 1)
        choices = self.settings.cluster.node_choices
        return tuple(nodes for nodes in choices if rows and self.global_batch % (nodes * rows) == 0)


def resolve(settings: Settings, options: Options) -> Plan:
    """Decide every value: an option given wins over the data preset, that over the model preset.

    Raises:
        ConfigError: with every contradiction found.
    """
    model, dataset = _find_both(settings, options)
    plan = _decide(settings, options, model, dataset)
    problems = [*_contradictions(plan, options), *_hidden_paths(plan)]
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


def _contradictions(plan: Plan, options: Options) -> list[Problem]:
    problems: list[Problem] = []

    def refuse(wrong: bool, path: str, message: str) -> None:
        if wrong:
            problems.append(Problem(path, message))

    launcher = plan.settings.launcher
    size = max(plan.tensor_parallel, 1)
    refuse(
        size > 1 and launcher.backend == "torch",
        "launcher.tensor_parallel",
        f"is for the neuron backend, got {size} with torch; there --sharding fsdp shares a model that one device cannot hold",
    )
    refuse(
        launcher.precompile and (launcher.backend == "torch" or not launcher.compile_cache),
        "launcher.precompile",
        "is for the neuron backend, and needs launcher.compile_cache, where other nodes find what it compiled",
    )
    refuse(
        plan.is_laid_out and plan.processes % size != 0,
        "--processes",
        f"must be a multiple of launcher.tensor_parallel, {size}, got {plan.processes}",
    )
    per_pass = max(plan.replicas, 1) * plan.micro_batch
    refuse(
        plan.is_laid_out and plan.global_batch % per_pass != 0,
        "--global-batch",
        f"must be a multiple of {'replicas' if size > 1 else 'processes'} × micro batch = "
        f"{per_pass // plan.micro_batch} × {plan.micro_batch} = {per_pass}, "
        f"got {plan.global_batch}; the nearest that fit are {_nearest_multiples(plan.global_batch, per_pass)}",
    )
    refuse(
        bool(options.max_steps and options.epochs),
        "--epochs",
        "give either --max-steps or --epochs, not both: got both",
    )
    refuse(
        plan.sharding == "fsdp" and plan.world == 1,
        "--sharding",
        "fsdp shards over processes and there is 1; use --sharding ddp, or --processes 2 or more",
    )
    refuse(
        plan.sharding == "fsdp" and plan.quantization == "4bit",
        "--quantization",
        "4bit with --sharding fsdp is not supported; use one of them",
    )
    refuse(
        plan.lora.method == "dora" and plan.quantization == "4bit",
        "--method",
        "dora with --quantization 4bit is not supported: its norms need the full weights; use lora or rslora",
    )
    refuse(not plan.lora.targets, "--lora-targets", f"names no module; use {ALL_LINEAR} or names such as q_proj,v_proj")
    refuse(
        len(plan.lora.targets) > 1 and ALL_LINEAR in plan.lora.targets,
        "--lora-targets",
        f"{ALL_LINEAR} stands alone; got {','.join(plan.lora.targets)}",
    )
    refuse(
        options.init_adapter != AUTO and find_path(f"{plan.lora.init_adapter}/adapter_config.json") is None,
        "--init-adapter",
        f"no adapter_config.json in {plan.lora.init_adapter!r}: expected a PEFT adapter folder",
    )
    return problems


def _hidden_paths(plan: Plan) -> list[Problem]:
    """Files of this machine alone, in a run whose pods read them; the data is read by `prepare`, which may run here."""
    cluster = plan.settings.cluster
    if not plan.settings.is_on_cluster:
        return []
    paths = {"--model": plan.model.path, "--init-adapter": plan.lora.init_adapter}
    if cluster.steps.enabled:
        paths["--dataset"] = plan.dataset.path
    return hidden_paths(cluster, paths)


def _nearest_multiples(value: int, step: int) -> str:
    below, above = value // step * step, -(-value // step) * step
    return " and ".join(str(multiple) for multiple in (below, above) if multiple > 0)


def linear_names(model_type: str) -> tuple[str, ...]:
    """Names of the linear modules in a decoder layer of this architecture; empty if not known here."""
    return LLAMA_LINEAR if model_type in LLAMA_LIKE else ()


def check_model(plan: Plan, config: dict[str, Any]) -> None:
    """Hold the plan against the model's own config.json (as parsed), before any weights are fetched.

    Raises:
        ConfigError: with every contradiction.
    """
    problems: list[Problem] = []
    longest = _whole(config, "max_position_embeddings")
    if longest and plan.sequence_length > longest:
        problems.append(
            Problem(
                "--sequence-length",
                f"must be <= {longest}, the model's max_position_embeddings, got {plan.sequence_length}",
            )
        )
    known = (*linear_names(str(config.get("model_type", ""))), "embed_tokens", "lm_head")
    if len(known) > 2 and plan.lora.targets != (ALL_LINEAR,):
        problems.extend(
            Problem(
                "--lora-targets",
                f"the model has no module {name!r}{suggest(name, list(known))}; it has {', '.join(known)}",
            )
            for name in plan.lora.targets
            if name not in known
        )
    sizes = [_whole(config, key) for key in ("hidden_size", "intermediate_size")]
    smallest = min((size for size in sizes if size), default=0)
    if smallest and plan.lora.rank > smallest:
        problems.append(Problem("--lora-rank", f"must be <= {smallest}, the model's hidden size, got {plan.lora.rank}"))
    if problems:
        raise ConfigError(problems)


def _whole(config: dict[str, Any], key: str) -> int:
    """The positive whole number at `key`, 0 for anything else: judging a foreign config.json is not our business."""
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else 0
