"""What reports: the `Sink` protocol, the facts that every sink gets, and HTTP without secrets in its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from steps.job.job import Change
from steps.protocol.events import Event

TIMEOUT_S = 5.0
"""Of one request. Nothing is tried again within a call: the next round is the next try."""


class ReportError(Exception):
    """Something could not be reported; the words hold no address and no secret."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Which training is told of."""

    key: str
    """Names it for ever, through all attempts and resumes: `<flow>/<run id>/<training>`."""
    folder: Path
    """The training's directory."""
    model: str = ""
    dataset: str = ""
    namespace: str = ""
    """The cluster's; empty on one machine."""
    steps: int = 0
    """Optimizer steps of the whole run."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Settings of the training, by dotted names."""
    data_digest: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    """`metaflow`: the run's address or pathspec."""

    @property
    def run(self) -> str:
        """`<flow>/<run id>`."""
        return self.key.rpartition("/")[0]


def key_of(folder: Path) -> str:
    """A training's key, by its directory, which keeps its name through attempts and resumes."""
    return "/".join(folder.parts[-3:])


class Sink(Protocol):
    """One place that is told. Its methods run in a thread of its own; they may raise, hang or be late without harm."""

    name: str
    every_s: float
    """Between two calls of `send`."""

    def send(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
        """Tell what is new, in order; called without any too, for what changes with time.

        What was not told, because this raised, comes again, whole: it must do no harm to tell it twice.
        """

    def close(self) -> None:
        """The last call."""


def post(
    url: str, body: Any, *, headers: Mapping[str, str] | None = None, auth: Any = None, timeout_s: float = TIMEOUT_S
) -> Any:
    """POST JSON; the answer's JSON, or None where it has none.

    Raises:
        ReportError: no answer, or one that refuses; with its code, and its words where it has some.
    """
    import requests

    try:
        answer = requests.post(url, json=body, headers=dict(headers or {}), auth=auth, timeout=timeout_s)
    except (requests.RequestException, ValueError) as error:  # their own words hold the address
        raise ReportError(f"no answer ({type(error).__name__})") from None
    return _read(answer)


def get(url: str, *, params: Mapping[str, str], headers: Mapping[str, str] | None = None, auth: Any = None) -> Any:
    """GET with parameters; the answer's JSON.

    Raises:
        ReportError: as `post`.
    """
    import requests

    try:
        answer = requests.get(url, params=dict(params), headers=dict(headers or {}), auth=auth, timeout=TIMEOUT_S)
    except (requests.RequestException, ValueError) as error:
        raise ReportError(f"no answer ({type(error).__name__})") from None
    return _read(answer)


class Refused(ReportError):
    """An answer other than 2xx."""

    def __init__(self, status: int, code: str, words: str) -> None:
        super().__init__(f"answered {status}{f' {code}' if code else ''}{f': {words[:200]}' if words else ''}")
        self.status, self.code = status, code


def _read(answer: Any) -> Any:
    try:
        body = answer.json() if answer.content else None
    except ValueError:
        body = None
    if 200 <= answer.status_code < 300:
        return body
    told = body if isinstance(body, dict) else {}
    raise Refused(answer.status_code, str(told.get("error_code", "")), str(told.get("message", "")))
