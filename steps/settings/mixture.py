"""Several data sets in one training: `a.jsonl:0.7,b.jsonl:0.3`, a list in JSON or in a Config's `run:`, or a preset's `mixture`.

Called by `resolve`. Each part is found as `--dataset` finds one; what makes them one training's data is checked here, what needs
their rows in `prepare.mix`. Fetches nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, Mistakes, Problem
from steps.settings.catalog import DatasetPreset, Part, find_dataset, find_path
from steps.settings.options import AUTO, Options
from steps.settings.section import validate

OPTION = "--dataset"
LONGEST_NAME = 60
"""Of the names of all parts together, which stands in tags and jobs."""
TEMPLATES = ("chat_template", "chat_template_kwargs")
EXAMPLES = "as in a.jsonl:0.7,b.jsonl:0.3"


def find_data(given: str) -> DatasetPreset:
    """What `--dataset` names: one data set, or several with their weights.

    Raises:
        ConfigError: with every part that names nothing, every weight that is none, and parts that do not go together.
    """
    parts = _listed(given)
    if parts is None:
        found = find_dataset(given)
        return _mixture(found.mixture, found) if found.mixture else found
    return _mixture(parts, DatasetPreset())


def _listed(given: str) -> Sequence[Part] | None:
    """The parts that a text names; None: it names one data set."""
    if find_path(given):
        return None
    if given.lstrip().startswith("["):
        return _of_list(given)
    items = [item.strip() for item in given.split(",")]
    if len(items) == 1:
        _refuse_lone_weight(given)
        return None
    mistakes = Mistakes()
    parts = [mistakes.look(partial(_of_text, item), Part(dataset=item)) for item in items]
    mistakes.tell()
    return parts


def _refuse_lone_weight(given: str) -> None:
    name, _, weight = given.rpartition(":")
    if name and find_path(name) and _number(weight) is not None:
        raise _problem(f"{given!r}: a weight needs several data sets to weigh, {EXAMPLES}")


def _of_list(given: str) -> Sequence[Part]:
    """The parts of a JSON list: texts as on the command line, or objects of `Part`'s settings."""
    try:
        items: Any = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise _problem(f"begins as a JSON list and is none: {error}; {_LIST_EXAMPLE}") from error
    mistakes = Mistakes()
    parts = [
        mistakes.look(
            partial(_of_text, item) if isinstance(item, str) else partial(_of_object, item, at), Part(dataset="")
        )
        for at, item in enumerate(items)
    ]
    mistakes.tell()
    return parts


_LIST_EXAMPLE = """an example: '[{"dataset": "a.jsonl", "weight": 0.7, "max_rows": 1000}, "b.jsonl:0.3"]'"""


def _of_object(item: object, at: int) -> Part:
    return validate(Part, item, prefix=f"{OPTION}[{at}].")


def _of_text(item: str) -> Part:
    """`name` or `name:weight`; a colon may belong to the name (`gsm8k:main`, `s3://…`, a file that is called so)."""
    name, colon, text = item.rpartition(":")
    weight = _number(text)
    if not item:
        raise _problem(f"names nothing between two commas; data sets are separated by one, {EXAMPLES}")
    if not colon or find_path(item) or (weight is None and not find_path(name)):
        return Part(dataset=item)
    if weight is None:
        raise _problem(f"{item!r}: expected a number as its weight, got {text!r}; {EXAMPLES}")
    if not (weight > 0 and math.isfinite(weight)):
        raise _problem(f"{item!r}: its weight must be above 0, got {text}; {EXAMPLES}")
    return Part(dataset=name, weight=weight)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _mixture(parts: Sequence[Part], whole: DatasetPreset) -> DatasetPreset:
    """The parts, found, as one data set; what a preset says of the whole stays.

    Raises:
        ConfigError: with every mistake in them.
    """
    mistakes = Mistakes()
    found = tuple(mistakes.look(partial(_found, part), part) for part in parts)
    mistakes.problems += _contradictions(found, whole)
    mistakes.tell()
    presets = [part.preset for part in found if part.preset]
    names = "-".join(preset.name for preset in presets)
    ours = {
        "name": names if len(names) <= LONGEST_NAME else f"mixture-of-{len(found)}",
        "title": " + ".join(preset.title or preset.name for preset in presets),
        "sequence_length": max(preset.sequence_length for preset in presets),
        "max_new_tokens": max(preset.max_new_tokens for preset in presets),
        "packing": all(preset.packing for preset in presets),
        **{name: _common(presets, name) for name in TEMPLATES},
    }
    said = {name: value for name in whole.model_fields_set if (value := getattr(whole, name)) or name == "packing"}
    return whole.model_copy(update={**ours, **said, "mixture": found})


def _found(part: Part) -> Part:
    preset = find_dataset(part.dataset)
    if preset.mixture:
        raise _problem(f"{part.dataset!r} is a mixture itself: name its data sets here")
    return part.model_copy(update={"preset": preset.model_copy(update={"columns": {**preset.columns, **part.columns}})})


def _contradictions(parts: Sequence[Part], whole: DatasetPreset) -> Iterator[Problem]:
    """What is wrong with the parts together."""
    if len(parts) < 2:
        yield Problem(OPTION, f"a mixture needs two data sets or more, got {len(parts)}")
    without = [part.dataset for part in parts if part.weight is None]
    if 0 < len(without) < len(parts):
        what = f"weights for all data sets or for none (then all samples are used): {', '.join(without)} {_HAS[len(without) > 1]}"
        yield Problem(OPTION, what)
    sources = Counter(_source(part.preset) for part in parts if part.preset)
    for source, count in sources.items():
        if count > 1:
            yield Problem(
                OPTION, f"{source} stands in the mixture {count} times: name it once, with the sum of the weights"
            )
    if whole.path or whole.s3 or whole.hub or whole.builtin:
        yield Problem(OPTION, f"the preset {whole.name} has a mixture and a source of its own: use one of them")


_HAS = ("has none", "have none")


def _source(preset: DatasetPreset) -> str:
    """What tells two data sets apart."""
    hub = (
        f"{preset.hub}{':' + preset.config if preset.config else ''}@{preset.revision}/{preset.split}"
        if preset.hub
        else ""
    )
    return preset.path or preset.s3 or hub or f"builtin:{preset.builtin}"


def template_problems(dataset: DatasetPreset, options: Options) -> Iterator[Problem]:
    """Parts whose presets want different chat templates, where no option says which: a model has one."""
    for name in TEMPLATES:
        wanted = {preset.name: getattr(preset, name) for preset in dataset.sources}
        is_decided = getattr(options, name) != AUTO or getattr(dataset, name)
        if any(wanted.values()) and not is_decided:
            told = ", ".join(f"{source}: {value or 'none'}" for source, value in wanted.items())
            what = f"the mixture's presets want different ones ({told}): say which, a model has one"
            yield Problem(f"--{name.replace('_', '-')}", what)


def _common(presets: Sequence[DatasetPreset], name: str) -> object:
    """What all presets say; nothing where they differ."""
    values = [getattr(preset, name) for preset in presets]
    return values[0] if all(value == values[0] for value in values) else type(values[0])()


def each_source(dataset: DatasetPreset, change: Callable[[DatasetPreset], DatasetPreset]) -> DatasetPreset:
    """The data set with `change` made in every source."""
    if not dataset.mixture:
        return change(dataset)
    changed = [part.model_copy(update={"preset": change(part.preset)}) for part in dataset.mixture if part.preset]
    return dataset.model_copy(update={"mixture": tuple(changed)})


def source_names(dataset: DatasetPreset) -> list[str]:
    """What each source of a mixture is called: a file by its name, wherever it lies, by its path where two have one name."""
    paths = [part.preset.path if part.preset else "" for part in dataset.mixture]
    short = [Path(path).name or part.dataset for path, part in zip(paths, dataset.mixture, strict=True)]
    return [path if path and short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


def local_files(dataset: DatasetPreset) -> dict[str, str]:
    """The paths on this machine that the data set is read from, by what names them."""
    if not dataset.mixture:
        return {OPTION: dataset.path}
    return {f"{OPTION} {Path(preset.path).name}": preset.path for preset in dataset.sources if preset.path}


def absolute(given: str) -> str:
    """The same text with the absolute path of each file that it names, so that it means the same in any folder."""
    parts = _listed(given)
    if parts is None:
        return str(find_path(given) or given)
    named = [part.model_copy(update={"dataset": str(find_path(part.dataset) or part.dataset)}) for part in parts]
    return json.dumps([part.model_dump(mode="json", exclude_defaults=True) for part in named])


def _problem(message: str) -> ConfigError:
    return ConfigError([Problem(OPTION, message)])
