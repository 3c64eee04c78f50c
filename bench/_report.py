"""What every benchmark prints: one JSON object a line, with its goal and whether it was met. `__main__` gathers them."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def report(what: str, ours: float, theirs: float | None = None, *, unit: str, goal: str = "") -> None:
    """Print one measurement.

    Args:
        ours: and `theirs`: medians, in `unit`.
        goal: `ratio <= 1.6` (ours / theirs), `difference < 1` (ours − theirs) or `ours < 0.02`; empty: there is none.
    """
    ratio = ours / theirs if theirs else None
    line = {
        "what": what,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        "unit": unit,
        "goal": goal,
        "met": is_met(goal, ours, theirs) if goal else None,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)


def is_met(goal: str, ours: float, theirs: float | None) -> bool:
    """Whether a measurement reaches a goal that is written as in `report`."""
    subject, comparison, number = goal.split()
    other = theirs or 0.0
    found = {"ours": ours, "ratio": ours / other if other else float("nan"), "difference": ours - other}[subject]
    return COMPARISONS[comparison](found, float(number))
