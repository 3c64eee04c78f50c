"""Trainings as a table, one a line: what a person looks for when they ask what runs and what came out.

For `status`. Reads the run directories; what is not known yet is a dash.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.flow.terminal import seconds_in_words
from steps.plain_text import visible
from steps.protocol.rundir import TrainDir, read_json

COLUMNS = ("run", "model", "data", "state", "step", "loss", "score", "age", "goodput")
NONE = "–"


def row(training: Path, facts: Mapping[str, Any], *, now_s: float) -> tuple[str, ...]:
    """One training; `facts` are those of `local_jobs.describe`."""
    run, account = training.parent, facts["account"] or {}
    plan = _read(run / "plan.json").get("plan", {})
    model, data = (_text(plan.get(part, {}), "name") for part in ("model", "dataset"))
    return (
        run.name,
        model,
        data,
        str(facts["state"]),
        f"{facts['step']}/{facts['of'] or '?'}",
        _figure(_read(TrainDir(training).adapter / "training.json").get("validation_loss"), ".4f"),
        _figure(_score(run), ".1%"),
        seconds_in_words(now_s - training.stat().st_mtime),
        _figure(account.get("goodput"), ".0%"),
    )


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows below their columns' names, each column as wide as it has to be."""
    shown = [COLUMNS, *(tuple(visible(cell) for cell in each) for each in rows)]
    widths = [max(len(each[place]) for each in shown) for place in range(len(COLUMNS))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(each, widths, strict=True)).rstrip() for each in shown]


def local_table(trainings: Sequence[Path]) -> list[str]:
    """The table of these trainings; one that cannot be read is named below it."""
    from steps.job.local_jobs import describe

    rows, damaged = [], []
    for path in trainings:
        try:
            rows.append(row(path, describe(path), now_s=time.time()))
        except (StorageError, OSError) as error:  # damaged, another user's, or removed just now
            damaged.append(f"{path}: {error}")
    return [*table(rows), *damaged, "`hyperpod-lora status RUN` tells one run's story"]


def _score(run: Path) -> object:
    """The tuned model's score in the run's newest evaluation; None without one."""
    reports = sorted(run.glob("evaluation-*/report.json"), key=lambda path: path.stat().st_mtime)
    return _read(reports[-1]).get("tuned_score") if reports else None


def _read(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where it is not there yet or cannot be read: a table is no place to fail."""
    with contextlib.suppress(StorageError):
        return read_json(path)
    return {}


def _text(values: object, name: str) -> str:
    return str(values.get(name) or NONE) if isinstance(values, Mapping) else NONE


def _figure(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else NONE
