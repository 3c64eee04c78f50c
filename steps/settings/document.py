"""The reference of all options and settings as Markdown, from their own docstrings: `python -m steps.settings.document`.

`make docs` writes it to docs/settings.md; a test compares the file with what is printed here.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from steps.settings.config import Settings
from steps.settings.options import GROUPS, Options, choices_of, help_of

HEAD = """\
# Options and settings

Made by `make docs` from the docstrings in `steps/settings`: change those, not this file.

**Options** say what to train. They belong to a run: `--learning-rate 1e-4`. **Settings** say where and how to run. They are the
YAML file that `--config` names; `config/local.yaml`, `config/hyperpod.yaml` and
`config/hyperpod-trn2.yaml` are commented examples. What is left out has the
default. All mistakes in either are told at once, before anything runs.
"""
REQUIRED = object()
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def document() -> str:
    """The whole text."""
    return "\n".join([HEAD, "## Options\n", *_options(), "## Settings\n", *_settings(Settings, "")]).rstrip() + "\n"


def _options() -> Iterator[str]:
    hints, defaults = get_type_hints(Options, include_extras=True), Options()
    for group, names in GROUPS.items():
        yield f"### {group}\n"
        yield from _table("option")
        for name in names:
            value = " or ".join(f"`{word}`" for word in choices_of(name).split("|") if word)
            limits = _limits(getattr(hints[name], "__metadata__", ()))
            value = value or _words_of(get_args(hints[name])[0]) + limits
            yield _row(f"--{name.replace('_', '-')}", value, getattr(defaults, name), help_of(name))
        yield ""


def _settings(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """A table of a section's own values, then its sections, each with its docstring."""
    own = {name: field for name, field in kind.model_fields.items() if not _sections_in(field.annotation)}
    if own:
        yield from _table("setting")
        for name, field in own.items():
            value = _words_of(field.annotation) + _limits(field.metadata)
            yield _row(prefix + name, value, _default_of(field), field.description or "")
        yield ""
    for name, field in kind.model_fields.items():
        for section in _sections_in(field.annotation):
            listed = " (a list)" if get_origin(field.annotation) is tuple else ""
            about = field.description or inspect.getdoc(section) or ""
            yield f"### `{prefix}{name}`{listed}\n\n{about}\n"
            yield from _settings(section, f"{prefix}{name}{'[]' if listed else ''}.")


def _table(what: str) -> Iterator[str]:
    yield f"| {what} | value | default | meaning |"
    yield "|---|---|---|---|"


def _row(name: str, value: str, default: object, meaning: str) -> str:
    cells = (f"`{name}`", value, _shown(default), " ".join(meaning.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(default: object) -> str:
    """As one writes it in YAML; nothing for what is empty."""
    if default is REQUIRED:
        return "must be given"
    if default in ("", (), {}):
        return ""
    return f"`{json.dumps(default)}`" if isinstance(default, bool) else f"`{_number(default)}`"


def _number(value: object) -> str:
    """Whole numbers without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _default_of(field: FieldInfo) -> object:
    return REQUIRED if field.is_required() else field.get_default(call_default_factory=True)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field holds: one, or those of its list or its alternatives."""
    inside = get_args(annotation) or (annotation,)
    return [item for item in inside if isinstance(item, type) and issubclass(item, BaseModel)]


def _words_of(annotation: Any) -> str:
    """A type in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{word}`" for word in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words_of(item) for item in inside))
    if origin is tuple:
        return f"list of {_words_of(inside[0])}"
    if origin is dict or annotation is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _words_of(inside[0])
    return {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", type(None): "nothing"}.get(
        annotation, "mapping"
    )


def _limits(metadata: Any) -> str:
    found = [
        f"{sign} {_number(getattr(item, name))}"
        for item in metadata
        for name, sign in SIGNS.items()
        if hasattr(item, name)
    ]
    return f" {', '.join(found)}" if found else ""


if __name__ == "__main__":
    print(document(), end="")
