"""A message to people when something happened that they would want to be woken for: one JSON POST, or a command of theirs.

The address is a secret (whoever has a chat's web hook may write there): it comes from the environment of the launching step, and
stands in no config, manifest, log or error. What happened is told once, also by a launcher that adopts the training.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.job.job import Change
from steps.protocol.events import Event
from steps.protocol.records import digest_of
from steps.protocol.rundir import read_json, write_json
from steps.report.sink import Facts, ReportError, post

SCHEMA = "hyperpod-lora/notice/1"
FILE = "notices.json"
"""In the training's directory: what has been told."""
COMMAND_S = 30.0


@dataclass(frozen=True, slots=True)
class Notice:
    """One message."""

    event: str
    """gave_up, budget, stuck, gate_failed or finished."""
    words: str
    attempt: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    def body(self, facts: Facts, time_s: float) -> dict[str, Any]:
        """What is sent. `text` alone is what Slack and its like show."""
        return {
            "schema": SCHEMA,
            "event": self.event,
            "run": facts.run,
            "model": facts.model,
            "dataset": facts.dataset,
            "attempt": self.attempt,
            "text": f"{facts.model} on {facts.dataset} ({facts.run}): {self.words}",
            "details": dict(self.details),
            "links": dict(facts.links),
            "time_s": round(time_s, 3),
        }


@dataclass(slots=True)
class Notices:
    """The sink."""

    facts: Facts
    wanted: frozenset[str]
    """Events that are told."""
    deliver: Callable[[Mapping[str, Any], str], None]
    """Takes the body, and a key that is the same whenever the same is told again."""
    stuck_after_s: float = 86400.0
    name: str = "notify"
    every_s: float = 5.0
    queued_s: float = 0.0
    """Unix time since when it waits in a queue; 0: it does not."""
    queued_attempt: int = 0

    def send(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
        """Tell what is new, and what has waited too long."""
        for change in changes:
            self._note_queue(change)
            if (notice := notice_of(change)) is not None:
                self.say(notice)
        if self.queued_s and time.time() - self.queued_s > self.stuck_after_s:
            hours = (time.time() - self.queued_s) / 3600
            self.say(Notice("stuck", f"has waited {hours:.1f} hours for nodes", self.queued_attempt))

    def _note_queue(self, change: Change) -> None:
        self.queued_s = change.time_s if change.kind == "queued" else 0.0
        self.queued_attempt = change.attempt

    def say(self, notice: Notice) -> None:
        """Deliver a notice, unless it is not wanted or was delivered before.

        Raises:
            ReportError: it could not be delivered.
            StorageError: that it was cannot be written down.
        """
        key = digest_of([self.facts.key, notice.event, notice.attempt])[:16]
        path = self.facts.folder / FILE
        told = read_json(path) if path.is_file() else {}
        if notice.event not in self.wanted or key in told:
            return
        self.deliver(notice.body(self.facts, time.time()), key)
        write_json(path, {**told, key: notice.event})

    def close(self) -> None:
        """Nothing is left open."""


def notice_of(change: Change) -> Notice | None:
    """What people are told of a turn; None: nothing."""
    if change.kind == "gave_up":
        event = "budget" if change.data["kind"] == "budget" else "gave_up"
        words = f"training was given up: {str(change.data['message']).splitlines()[0]}"
        return Notice(event, words, change.attempt, {"failure_class": change.data["failure_class"]})
    if change.kind == "finished":
        account = {key: value for key, value in change.data["account"].items() if not isinstance(value, list)}
        return Notice("finished", f"training is done after {change.attempt} attempt(s)", change.attempt, account)
    return None


def by_post(address: str) -> Callable[[Mapping[str, Any], str], None]:
    """Delivers by one POST."""

    def deliver(body: Mapping[str, Any], key: str) -> None:
        post(address, body, headers={"Idempotency-Key": key})

    return deliver


def by_command(command: str) -> Callable[[Mapping[str, Any], str], None]:
    """Delivers by a command that reads the JSON on its standard input; there is no shell, and no text of ours in its words."""

    def deliver(body: Mapping[str, Any], key: str) -> None:
        words = shlex.split(command)
        try:
            done = subprocess.run(
                words, input=json.dumps(body), text=True, timeout=COMMAND_S, capture_output=True, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ReportError(f"{words[0]} could not be run ({type(error).__name__})") from error
        if done.returncode:
            raise ReportError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[-200:]}")

    return deliver


def all_of(*ways: Callable[[Mapping[str, Any], str], None]) -> Callable[[Mapping[str, Any], str], None]:
    """Delivers by each way."""

    def deliver(body: Mapping[str, Any], key: str) -> None:
        for way in ways:
            way(body, key)

    return deliver
