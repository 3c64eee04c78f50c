"""What a run was made from may lie in another run's directory: its base model, the adapter that it began with, its data.

Told by the paths in what a run keeps of its own making. It reads files, and decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RECORDS = ("options.json", "plan.json", "train-*/spec.json")
"""Written by `start`, by `prepare` and before the first attempt."""
LONGEST = 4096
"""Of a path: texts of a data set are no paths."""


def needed(unused: Sequence[Path], staying: Sequence[Path]) -> dict[Path, list[str]]:
    """Those of `unused` that a run which stays was made from, directly or through others; with the reason in words."""
    found: dict[Path, list[str]] = {}
    left, asking = list(unused), list(staying)
    while asking:
        by = asking.pop()
        named = named_in(by)
        for run in [run for run in left if any(path.is_relative_to(run.resolve()) for path in named)]:
            found[run] = [f"run {by.name} was made from what is in it, and stays"]
            left.remove(run)
            asking.append(run)
    return found


def named_in(run: Path) -> set[Path]:
    """Every absolute path that the records of a run name, links followed; a record that cannot be read names none."""
    texts = (text for pattern in RECORDS for path in run.glob(pattern) for text in _texts(_read(path)))
    return {Path(text).resolve() for text in texts if text.startswith("/") and len(text) < LONGEST and "\0" not in text}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
