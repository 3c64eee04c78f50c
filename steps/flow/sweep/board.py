"""The leaderboard of a sweep: its rows, in order, as text and for the card. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steps.flow.terminal import seconds_in_words
from steps.plain_text import counted, shorten

Row = dict[str, Any]
WORDS_LIMIT = 200


def row(number: int, branch: Mapping[str, Any], adapter: Mapping[str, Any], failed: str) -> Row:
    """One branch, trained (`adapter` is its record) or given up (`failed` says why)."""
    return {
        "branch": number,
        "name": branch["name"],
        "run_dir": branch["run_dir"],
        "data": branch["prepared"]["identity"],
        "validation_loss": adapter.get("validation_loss"),
        "loss": adapter.get("last_loss"),
        "steps": adapter.get("step", 0),
        "attempts": adapter.get("attempts", 0),
        "seconds": (adapter.get("account") or {}).get("total_s", 0.0),
        "adapter": adapter.get("path", ""),
        "failed": failed,
    }


def rank(rows: Sequence[Row]) -> list[Row]:
    """Lowest validation loss first; where there was no validation, lowest training loss; those that were given up last."""
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[bool, bool, float, int]:
    loss = row["validation_loss"] if row["validation_loss"] is not None else row["loss"]
    value = math.inf if loss is None or math.isnan(loss) else loss
    return bool(row["failed"]), row["validation_loss"] is None, value, row["branch"]


def view(rows: Sequence[Row], branches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `leaderboard.html` prints."""
    sets = len({row["data"] for row in rows})
    return {
        "title": f"Sweep of {counted(len(rows), 'branch', 'branches')}",
        "note": f"The branches read {sets} different prepared data sets: their validation losses are of different samples."
        if sets > 1
        else "",
        "rows": [_cells(place, row) for place, row in enumerate(rows, start=1)],
        "shared": _shared(branches),
    }


def _shared(branches: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The options that all branches have."""
    first = branches[0]["options"]
    return {
        name: str(value)
        for name, value in first.items()
        if all(branch["options"].get(name) == value for branch in branches)
    }


def _cells(place: int, row: Row) -> list[str]:
    if row["failed"]:
        return ["–", row["name"], "given up", shorten(row["failed"], WORDS_LIMIT), "", "", row["run_dir"]]
    return [
        str(place),
        row["name"],
        _number(row["validation_loss"]),
        _number(row["loss"]),
        f"{row['steps']:,}",
        f"{seconds_in_words(row['seconds'])}, {counted(row['attempts'], 'attempt')}",
        row["run_dir"],
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def lines(rows: Sequence[Row]) -> list[str]:
    """The same for the terminal."""
    cells = [["", "branch", "validation loss", "loss", "steps", "time", "run directory"]]
    cells += [_cells(place, row) for place, row in enumerate(rows, start=1)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
