"""The account of a training in words and as one bar: where the time went, and what it cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steps.flow.terminal import number, seconds_in_words
from steps.job.goodput import PIECES

NAMES = {
    "productive": "training",
    "queue": "waiting in the queue",
    "startup": "starting workers",
    "model_load": "loading the model",
    "compile": "first step",
    "checkpoint": "saving checkpoints",
    "validation": "validation",
    "lost": "work lost and done again",
    "recovery": "recovering from failures",
    "exit": "ending",
    "idle": "nobody at work",
}
"""An account's pieces in words."""
LEAST_S = 0.05
"""Shorter pieces are left out."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of the bar."""

    name: str
    style: str
    share: float
    """0..1 of the whole."""
    words: str

    @property
    def percent(self) -> str:
        """The share in words."""
        words = f"{self.share:.0%}"
        return "below 1%" if words == "0%" else words


def pieces(account: Mapping[str, Any]) -> list[Piece]:
    """What took time, training first, then as it happens; empty for an account without any."""
    seconds = {name: number(account.get(f"{name}_s")) for name in ("productive", *PIECES)}
    taken = {name: value for name, value in seconds.items() if value >= LEAST_S}
    total = sum(taken.values())
    return [Piece(NAMES[name], name, value / total, duration(value)) for name, value in taken.items()]


def cost(account: Mapping[str, Any]) -> str:
    """`12.50 USD for 3.2 node-hours`; empty where no price is set."""
    if "cost" not in account:
        return ""
    return f"{number(account['cost']):,.2f} {account.get('currency', '')} for {number(account.get('node_hours')):.2g} node-hours"


def duration(seconds: float) -> str:
    """`0.4 s` below ten seconds, then as everywhere."""
    return f"{seconds:.1f} s" if seconds < 9.95 else seconds_in_words(seconds)
