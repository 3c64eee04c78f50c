"""Feeds `account` from a run directory: attempts from the history, events from their files. For `supervise`, `leftovers`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.job.goodput import Span, account
from steps.job.history import History
from steps.protocol.events import Event, parse_line
from steps.protocol.rundir import TrainDir
from steps.settings.config import Launcher


def account_of(directory: TrainDir, history: History, prices: Launcher, *, until_s: float) -> dict[str, Any]:
    """Where the time of all attempts went, until `until_s` (Unix time); each event file is read once, line by line."""
    spans: list[Span] = []
    attempts = history.attempts
    for index, item in enumerate(attempts):
        following = attempts[index + 1] if index + 1 < len(attempts) else None
        ended_s = until_s if following is None else following.created_s
        if following and following.begins_session and item.finished_s is not None:
            ended_s = item.finished_s
        idle_s = max(0.0, item.created_s - spans[-1].ended_s) if spans else 0.0
        failed_s = (item.failed_s or item.finished_s) if item.failure_class else None
        events = _events(directory.events(item.number))
        ends = (max(ended_s, item.created_s), failed_s, item.admitted_s)
        spans.append(Span(item.number, item.created_s, *ends, events, idle_s, item.nodes or 1))
    return account(spans, price_per_node_hour=prices.price_per_node_hour, currency=prices.currency)


def _events(path: Path) -> Iterator[Event]:
    """All events of a file, without holding them."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            event = parse_line(line)
            if event:
                yield event
