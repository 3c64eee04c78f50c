"""A file that holds one JSON object: the rows inside it, whichever way programs write them there. Pure.

Called by `json_files`. `{"data": [{…}, …]}`; pandas' ways (columns, index, split, table); a data set's `to_dict()`, a list for
each column. Anything else is a row of its own, or a description of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steps.errors import DataError
from steps.prepare.chat.forms import find_layout

CONVERSATIONS = ("messages", "conversations")
"""Keys of an object that is a row, though it holds a list."""
TURN = frozenset({"role", "from", "content", "value"})
"""Keys of a message, one of which each has."""


def is_lone_object(values: Mapping[str, Any]) -> bool:
    """Whether the one object of a file is something else than a row: what holds the rows, columns, or a description."""
    is_row = _is_conversation(values) or has_shape(values)
    return not is_row and any(isinstance(value, list | dict) for value in values.values())


def rows_in(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that the one object of a file holds; none if it is a row, or holds something else.

    Raises:
        DataError: it holds several lists of rows; or columns that are not equally long.
    """
    if _is_conversation(values):
        return []
    lists = [key for key, value in values.items() if _is_rows(value)]
    shaped = [key for key in lists if has_shape(values[key][0])]
    if has_shape(values) and not set(shaped) & set(CONVERSATIONS):
        return _transposed(values)
    if _is_split(values):
        return [dict(zip(values["columns"], row, strict=True)) for row in values["data"]]
    if len(lists) > 1 and len(shaped) != 1:
        named = ", ".join((shaped or lists)[:20])
        raise DataError(f"holds several lists of rows ({named}): put each into a file of its own: jq .KEY")
    if lists:
        found: list[dict[str, Any]] = values[(shaped or lists)[0]]
        return found
    inner = [value for value in values.values() if isinstance(value, dict)]
    return inner if inner and len(inner) == len(values) and has_shape(inner[0]) else []


def as_row(values: Any) -> Any:
    """A list of messages as a row that holds them; anything else as it is."""
    return {"messages": values} if _is_rows(values) and not TURN.isdisjoint(values[0]) else values


def _is_conversation(values: Mapping[str, Any]) -> bool:
    return any(_is_rows(values.get(key)) and not TURN.isdisjoint(values[key][0]) for key in CONVERSATIONS)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def has_shape(columns: Mapping[str, Any]) -> bool:
    """Whether these columns are those of a known shape."""
    try:
        find_layout(columns)
    except DataError:
        return False
    return True


def _is_split(values: Mapping[str, Any]) -> bool:
    """pandas' `orient="split"`: names, and lists of as many values."""
    names, rows = values.get("columns"), values.get("data")
    if not isinstance(names, list) or not isinstance(rows, list):
        return False
    return all(isinstance(name, str) for name in names) and all(
        isinstance(row, list) and len(row) == len(names) for row in rows
    )


def _transposed(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an object whose keys are columns, each a list or an object by row; none if it is a row itself."""
    if not columns or not all(isinstance(value, list | dict) for value in columns.values()):
        return []
    if any(_is_rows(value) and not TURN.isdisjoint(value[0]) for value in columns.values()):
        return []
    keys = [list(value) if isinstance(value, dict) else range(len(value)) for value in columns.values()]
    if any(set(one) != set(keys[0]) for one in keys):
        lengths = ", ".join(f"{name[:60]} {len(value):,}" for name, value in list(columns.items())[:20])
        raise DataError(f"holds columns that are not equally long ({lengths}): expected a value of each for every row")
    return [{name: value[key] for name, value in columns.items()} for key in keys[0]]
