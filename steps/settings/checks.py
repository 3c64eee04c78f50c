"""What is wrong with a plan: contradictions, what does not fit the model, missing libraries. All of it at once, in words.

`contradictions` knows settings and options only; `check_model` compares a plan with the model's own config.json. Called by
`resolve` and by the flow's `start`. Pure: fetches nothing, and is told what is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from steps.errors import ConfigError, Problem
from steps.settings.catalog import ALL_LINEAR, find_path
from steps.settings.cluster import hidden_paths
from steps.settings.mixture import local_files
from steps.settings.options import AUTO, Options
from steps.settings.plan import Plan
from steps.settings.section import suggest

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3", "granite", "gemma", "gemma2", "gemma3_text", "smollm3"})
"""model_type values whose decoder layers name their linear modules as Llama does."""
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
"""Names under which a config.json says how many positions the model knows."""
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXTRAS = {"bitsandbytes": "quantization", "tensorboard": "tracking"}
"""Libraries that come with an extra of this project."""


def contradictions(plan: Plan, options: Options) -> list[Problem]:
    """Every one found; `options` are those that led to the plan."""
    found = (_in_launcher(plan), _in_rows(plan, options), _in_method(plan), _in_adapter(plan, options), _hidden(plan))
    return [problem for part in found for problem in part]


def _in_launcher(plan: Plan) -> Iterator[Problem]:
    launcher, size = plan.settings.launcher, plan.replica_size
    for name in ("tensor_parallel", "pipeline_parallel"):
        if (asked := getattr(launcher, name)) > 1 and launcher.backend != "neuron":
            yield Problem(
                f"launcher.{name}",
                f"is for the neuron backend, got {asked} with {launcher.backend}; "
                "there --sharding fsdp shares a model that one device cannot hold",
            )
    if launcher.precompile and (launcher.backend != "neuron" or not launcher.compile_cache):
        yield Problem(
            "launcher.precompile",
            "is for the neuron backend, and needs launcher.compile_cache, where other nodes find what it compiled",
        )
    if plan.is_laid_out and (plan.world % size or plan.processes % max(plan.tensor_parallel, 1)):
        whose = "launcher.tensor_parallel" + (" × launcher.pipeline_parallel" if plan.pipeline_parallel > 1 else "")
        yield Problem("--processes", f"must be a multiple of {whose}, {size}, got {plan.processes}")


def _in_rows(plan: Plan, options: Options) -> Iterator[Problem]:
    rows, micro_batch = plan.training.global_batch, plan.training.micro_batch
    per_pass = max(plan.replicas, 1) * micro_batch
    if plan.is_laid_out and rows % per_pass != 0:
        yield Problem(
            "--global-batch",
            f"must be a multiple of {'replicas' if plan.replica_size > 1 else 'processes'} × micro batch = "
            f"{per_pass // micro_batch} × {micro_batch} = {per_pass}, "
            f"got {rows}; the nearest that fit are {_nearest_multiples(rows, per_pass)}",
        )
    if options.max_steps and options.epochs:
        yield Problem("--epochs", "give either --max-steps or --epochs, not both: got both")


def _in_method(plan: Plan) -> Iterator[Problem]:
    if plan.training.sharding == "fsdp" and plan.world == 1:
        yield Problem(
            "--sharding",
            "fsdp shards over processes and there is 1; use --sharding ddp, or --processes 2 or more",
        )
    if plan.training.sharding == "fsdp" and plan.training.quantization == "4bit":
        yield Problem("--quantization", "4bit with --sharding fsdp is not supported; use one of them")
    if plan.training.lora.method == "dora" and plan.training.quantization == "4bit":
        yield Problem(
            "--method",
            "dora with --quantization 4bit is not supported: its norms need the full weights; use lora or rslora",
        )


def _in_adapter(plan: Plan, options: Options) -> Iterator[Problem]:
    targets, start = plan.training.lora.targets, plan.training.lora.init_adapter
    if not targets:
        yield Problem("--lora-targets", f"names no module; use {ALL_LINEAR} or names such as q_proj,v_proj")
    if len(targets) > 1 and ALL_LINEAR in targets:
        yield Problem("--lora-targets", f"{ALL_LINEAR} stands alone; got {','.join(targets)}")
    if options.init_adapter != AUTO and find_path(f"{start}/adapter_config.json") is None:
        yield Problem("--init-adapter", f"no adapter_config.json in {start!r}: expected a PEFT adapter folder")


def _hidden(plan: Plan) -> list[Problem]:
    """Files of this machine alone, in a run whose pods read them; the data is read by `prepare`, which may run here."""
    cluster = plan.settings.cluster
    if not plan.settings.is_on_cluster:
        return []
    paths = {"--model": plan.model.path, "--init-adapter": plan.training.lora.init_adapter}
    if cluster.steps.enabled:
        paths |= local_files(plan.dataset)
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
    problems = [*_too_long(plan, config), *_unknown_targets(plan, config), *_too_wide(plan, config)]
    if problems:
        raise ConfigError(problems)


def _too_long(plan: Plan, config: dict[str, Any]) -> Iterator[Problem]:
    inner = config.get("text_config")
    for sizes in (config, inner if isinstance(inner, dict) else {}):
        for key in POSITIONS:
            longest = _whole(sizes, key)
            if longest and plan.sequence_length > longest:
                what = f"must be <= {longest}, the model's {key}, got {plan.sequence_length}"
                yield Problem("--sequence-length", what)
                return


def _unknown_targets(plan: Plan, config: dict[str, Any]) -> Iterator[Problem]:
    linear = linear_names(str(config.get("model_type", "")))
    lora = plan.training.lora
    if not linear or lora.targets == (ALL_LINEAR,) or lora.init_adapter:  # an adapter's may be patterns and long names
        return
    known = (*linear, "embed_tokens", "lm_head")
    for name in lora.targets:
        if name not in known:
            near = suggest(name, list(known))
            yield Problem("--lora-targets", f"the model has no module {name!r}{near}; it has {', '.join(known)}")


def _too_wide(plan: Plan, config: dict[str, Any]) -> Iterator[Problem]:
    sizes = [_whole(config, key) for key in ("hidden_size", "intermediate_size")]
    smallest = min((size for size in sizes if size), default=0)
    if smallest and plan.training.lora.rank > smallest:
        yield Problem("--lora-rank", f"must be <= {smallest}, the model's hidden size, got {plan.training.lora.rank}")


def _whole(config: dict[str, Any], key: str) -> int:
    """The positive whole number at `key`, 0 for anything else: judging a foreign config.json is not our business."""
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else 0


def check_libraries(plan: Plan, is_installed: Callable[[str], bool]) -> None:
    """Whether all that the plan asks for can be loaded, before anything is fetched.

    What workers need is looked for only where they run on this machine: on a cluster they have their image's libraries, which
    nobody can look into from here. Trackers are fed by the process that launches the job.

    Raises:
        ConfigError: with each library that is missing.
    """
    asked: list[tuple[str, str, str]] = [
        ("reporting.report_to", name, name)
        for name in plan.settings.reporting.report_to
        if name in ("tensorboard", "wandb")
    ]
    if plan.training.quantization == "4bit" and not plan.settings.is_on_cluster:
        asked.append(("--quantization", "4bit", "bitsandbytes"))
    problems = [
        Problem(where, f"{what} needs the library {name}, which is not installed here; {how_to_install(name)}")
        for where, what, name in asked
        if not is_installed(name)
    ]
    if problems:
        raise ConfigError(problems)


def how_to_install(name: str) -> str:
    """What to type, or what to do without."""
    package = f"'.[{EXTRAS[name]}]'" if name in EXTRAS else name
    return f"install it (pip install {package}) or leave it out"
