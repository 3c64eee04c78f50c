"""`Section`, the base of all settings, and `validate`: untyped input → a Section, or one ConfigError with every mistake.

Pydantic does the checking; its complaints are turned into sentences that name the path, what was given and what is allowed.
Used by `config`, `catalog`, `resolve` and the worker's spec. Knows no setting by name.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from steps.errors import ConfigError, Problem

LONGEST_SHOWN = 200
"""Characters of a given value that a message repeats: enough to find it again, and the sentence stays readable."""


class Section(BaseModel):
    """A group of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


KindT = TypeVar("KindT")


def validate(kind: type[KindT], raw: object, *, prefix: str) -> KindT:
    """Validate `raw` as `kind`, a Section or a dataclass; pydantic's errors become one ConfigError; paths begin with `prefix`.

    Raises:
        ConfigError: with every mistake.
    """
    if not isinstance(raw, Mapping):
        what = f"expected a mapping of settings, got {type(raw).__name__}"
        raise ConfigError([Problem(prefix or "(top level)", what)])
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        problems = [_problem(kind, dict(item), prefix) for item in error.errors(include_url=False)]
        raise ConfigError(problems) from error


def _problem(kind: type[Any], item: dict[str, Any], prefix: str) -> Problem:
    location = [str(part) for part in item["loc"]]
    path = prefix + _name(location, dashed=prefix == "--")
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys_at(kind, location[:-1])
        listed = ", ".join(_name([name], dashed=prefix == "--") for name in known)
        return Problem(
            path, f"unknown setting{suggest(location[-1], known)}" + (f"; known here: {listed}" if listed else "")
        )
    if item["type"] == "missing":
        return Problem(path, "must be given")
    return Problem(path, f"{_sentence(item)}, got {_shown(item.get('input'))}")


def _name(location: list[str], *, dashed: bool) -> str:
    """As a person writes it: on the command line with dashes, and never empty."""
    name = ".".join(part or "''" for part in location)
    return name.replace("_", "-") if dashed else name


def _sentence(item: dict[str, Any]) -> str:
    context = item.get("ctx", {})
    match item["type"]:
        case "greater_than":
            return f"must be > {context['gt']}"
        case "greater_than_equal":
            return f"must be >= {context['ge']}"
        case "less_than":
            return f"must be < {context['lt']}"
        case "less_than_equal":
            return f"must be <= {context['le']}"
        case "literal_error":
            return f"must be one of {context['expected']}"
        case "model_type":
            return "must be a mapping of settings"
        case "tuple_type":
            return "must be a list"
        case _:
            message = str(item["msg"])
            return message[:1].lower() + message[1:]


SECRETS = re.compile(r"(?<=://)[^/\s@']+(?=@)|(?<![A-Za-z0-9])hf_\w+|(?<=[?&])[^\s'#]+|(?<=hooks\.slack\.com/)[^\s']+")
"""In an address: user and password, a token of the hub, what is asked for, the path of a webhook."""


def _shown(value: object) -> str:
    """What was given, without what may be a secret in it: this is printed and logged."""
    try:
        text = SECRETS.sub("…", repr(value))
    except ValueError:  # Python refuses to write out integers of more than 4,300 digits
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} … ({len(text):,} characters)"


def _keys_at(kind: type[Any], location: list[str]) -> list[str]:
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    for part in location:
        field = kind.model_fields.get(part)
        inner = [item for item in _alternatives(field.annotation) if issubclass(item, BaseModel)] if field else []
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)


def _alternatives(annotation: Any) -> tuple[type[Any], ...]:
    """The classes of `X | None`; of anything else the thing itself, if it is a class."""
    inside = get_args(annotation) if get_origin(annotation) is types.UnionType else (annotation,)
    return tuple(item for item in inside if isinstance(item, type))


def suggest(given: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(given, known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(name) for name in near)}?)" if near else ""
