"""A sweep's file → the options of each of its branches. Pure.

    options: {model: smollm2-135m, dataset: orders}     what all branches have
    grid: {learning_rate: [1e-4, 2e-4], lora_rank: [8, 16]}     every combination: four branches
    runs: [{method: dora, learning_rate: 1e-4}]     further branches, one by one

Called by `branches`. Whether the options can work is not judged here.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import Field

from steps.errors import ConfigError, Problem
from steps.settings.options import OF_THE_COMMAND, OPTIONS
from steps.settings.section import Section, suggest, validate
from steps.settings.yaml_text import read_yaml

Options = dict[str, Any]

MOST = 100
"""Branches; Metaflow's own limit, unless `run --max-num-splits` raises it."""
EXAMPLE = "an example: grid: {learning_rate: [1e-4, 2e-4]}"


class _File(Section):
    """The file as it is written."""

    options: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    runs: tuple[dict[str, Any], ...] = ()


def read_sweep(text: str) -> list[Options]:
    """The options of each branch: those of all, and above them its own.

    Raises:
        ConfigError: no YAML, nothing that varies, an unknown option, a branch that stands there twice; all mistakes at once.
    """
    try:
        raw = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError([Problem("sweep", f"not valid YAML: {error}")]) from error
    file = validate(_File, {} if raw is None else raw, prefix="sweep.")
    problems, own = _problems(file), []
    if _count(file) <= MOST:
        own = [*_combinations(file.grid), *map(_named, file.runs)]
        problems += _twins(own)
    if problems:
        raise ConfigError(problems)
    shared = _named(file.options)
    return [{**shared, **options} for options in own]


def _named(options: Mapping[str, Any]) -> Options:
    """With underscores; a list of data sets as one text, as on the command line."""
    values = {str(name).replace("-", "_"): value for name, value in options.items()}
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in values.items()}


def _count(file: _File) -> int:
    """Branches, none of them made yet."""
    return len(file.runs) + (math.prod(map(len, file.grid.values())) if file.grid else 0)


def _combinations(grid: Mapping[str, list[Any]]) -> list[Options]:
    if not grid:
        return []
    return [_named(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]


def _problems(file: _File) -> list[Problem]:
    places = [
        ("options", file.options),
        ("grid", file.grid),
        *((f"runs[{at}]", run) for at, run in enumerate(file.runs)),
    ]
    found = [problem for place, options in places for problem in _unknown(place, options)]
    found += [
        Problem(f"sweep.grid.{name}", f"names no value; {EXAMPLE}") for name, values in file.grid.items() if not values
    ]
    count = _count(file)
    if not file.grid and not file.runs:
        found.append(Problem("sweep", f"names nothing that varies: needs a grid or runs; {EXAMPLE}"))
    elif count > MOST:
        found.append(Problem("sweep", f"has {count:,} branches, {MOST} at most: fewer values, or several sweeps"))
    return found


def _unknown(place: str, options: Mapping[str, Any]) -> list[Problem]:
    found = []
    for given in options:
        name = str(given).replace("-", "_")
        if name in OF_THE_COMMAND:
            found.append(Problem(f"sweep.{place}.{given}", "is for one run, not for a sweep; leave it out"))
        elif name not in OPTIONS:
            found.append(Problem(f"sweep.{place}.{given}", f"no such option{suggest(name, list(OPTIONS))}"))
    return found


def _twins(branches: list[Options]) -> list[Problem]:
    seen: set[str] = set()
    found = []
    for options in branches:
        key = json.dumps(options, sort_keys=True, default=str)
        if key in seen:
            found.append(Problem("sweep", f"the branch {label(options, list(options))} stands there twice"))
        seen.add(key)
    return found


def varied(branches: list[Options]) -> list[str]:
    """The options that are not the same in all branches, in the file's order."""
    names = list(dict.fromkeys(name for options in branches for name in options))
    return [name for name in names if len({json.dumps(options.get(name), default=str) for options in branches}) > 1]


def label(options: Mapping[str, Any], names: list[str]) -> str:
    """A branch in words: `learning_rate 1e-4, lora_rank 8`."""
    return ", ".join(f"{name} {options[name]}" for name in names if name in options) or "the options of all"
