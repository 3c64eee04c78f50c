"""The adapter that training starts from decides method, rank, alpha, dropout and targets; an option that says otherwise is wrong.

Called by `resolve`. Reads its adapter_config.json, no weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, Problem
from steps.settings.catalog import ALL_LINEAR
from steps.settings.options import AUTO, Method, Options
from steps.settings.plan import LoraSettings

WHERE = "--init-adapter"


def settings_of(folder: Path, options: Options) -> LoraSettings:
    """The adapter's own settings.

    Raises:
        ConfigError: it is none that training can go on from, or an option contradicts it.
    """
    config = _read(folder / "adapter_config.json")
    try:
        found = LoraSettings(
            method=_method(config),
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config.get("lora_dropout", 0.0)),
            targets=_targets(config),
            init_adapter=str(folder),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(f"{folder / 'adapter_config.json'} is no LoRA adapter's that PEFT wrote ({error!r})") from error
    problems = list(_contradictions(found, options))
    if problems:
        raise ConfigError(problems)
    return found


def _read(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(f"{file} cannot be read ({error}): give the folder that PEFT's save_pretrained wrote") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise _refused(f"{file} has peft_type {kind!r}; training goes on from LORA adapters only")
    return config


def _refused(message: str) -> ConfigError:
    return ConfigError([Problem(WHERE, message)])


def _method(config: Mapping[str, Any]) -> Method:
    if config.get("use_dora") and config.get("use_rslora"):
        raise _refused("it uses DoRA and rsLoRA together, which --method cannot say; start fresh")
    return "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"


def _targets(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A pattern stays one word; names in the order of the alphabet."""
    targets = config["target_modules"]
    return (targets,) if isinstance(targets, str) else tuple(sorted(str(name) for name in targets))


def _contradictions(found: LoraSettings, options: Options) -> Iterator[Problem]:
    given = {
        "--method": (options.method, AUTO, found.method),
        "--lora-rank": (options.lora_rank, 0, found.rank),
        "--lora-alpha": (options.lora_alpha, 0.0, found.alpha),
        "--lora-dropout": (options.lora_dropout, 0.0, found.dropout),
    }
    for path, (asked, unset, there) in given.items():
        if asked not in (unset, there):
            yield Problem(path, f"is {asked}, but the adapter in {WHERE} has {there}; leave it out, or start fresh")
    asked_targets = {name.strip() for name in options.lora_targets.split(",") if name.strip()}
    # What all-linear came to is known once the model is: the adapter's own names stand for it.
    if options.lora_targets not in (AUTO, ALL_LINEAR) and asked_targets != set(found.targets):
        what = f"is {options.lora_targets}, but the adapter in {WHERE} has {','.join(found.targets)}"
        yield Problem("--lora-targets", f"{what}; leave it out, or start fresh")
