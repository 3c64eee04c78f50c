"""The supervisor's memory of a training: its attempts and its verdict, as JSON in the run directory.

Plain values with `to_dict` and `from_dict`; `load` and `save` are the only lines that touch the disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from steps.errors import StorageError
from steps.job.job import Job
from steps.plain_text import move_away
from steps.protocol.failure_class import FailureClass
from steps.protocol.run_options import how_to_resume
from steps.protocol.rundir import read_json, write_json

ValueT = TypeVar("ValueT")
SCHEMA = "hyperpod-lora/history/1"
NOT_COUNTED = "forgiven"
"""The key of `History.not_counted` in the file."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """How a supervisor's clocks stood to each other, so that a later one's can be compared with them."""

    boot: str
    wall_s: float
    """Unix time less the monotonic clock, which counts from the machine's start."""
    ahead_s: float
    """Unix time less the file system's clock."""

    def ahead_of(self, earlier: Clocks) -> float:
        """Seconds by which the Unix time here is ahead of the earlier one's, beyond those that have passed."""
        if self.boot == earlier.boot:
            return self.wall_s - earlier.wall_s
        return self.ahead_s - earlier.ahead_s


@dataclass(frozen=True, slots=True)
class Attempt:
    """One submission of the job. An attempt without `finished_s` is, as far as we know, still running."""

    number: int
    created_s: float
    """Unix time, supervisor's clock; so are the next two."""
    spec_digest: str = ""
    begins_session: bool = False
    """The first of its supervisor: before it, nobody may have been there."""
    admitted_s: float | None = None
    """When it left the queue."""
    finished_s: float | None = None
    failed_s: float | None = None
    """When its first worker failed, as far as known."""
    failure_class: str = ""
    message: str = ""
    rank: int | None = None
    node: str = ""
    step: int | None = None
    """Steps done at its end."""
    complete_step: int = 0
    """Step of the newest complete checkpoint at its end."""
    nodes: int = 0
    """Nodes that it asked for; 0: as the job says."""
    image: str = ""
    """The image of its workers; empty where there is none."""
    is_at_start: bool = False
    """It failed because its workers did not all start (in time)."""
    excluded: tuple[str, ...] = ()
    """Nodes that it left out, whatever it had to wait for."""
    lacks_room: bool = False
    """It waited in vain for nodes that could take it."""
    ready_s: float | None = None
    """Seconds from its creation to its first training step, without those in a queue."""
    idle_s: float | None = None
    """Seconds between the last attempt's end and it when there was no supervisor; None: as the labels say (older versions)."""
    spent_s: float | None = None
    """Seconds, by a monotonic clock, in which it ran or was wanted outside a queue; None: not known (yet)."""

    @property
    def failure(self) -> FailureClass | None:
        """Why it ended; None for one that succeeded or runs."""
        return FailureClass(self.failure_class) if self.failure_class else None

    @property
    def is_open(self) -> bool:
        """Not known to have ended."""
        return self.finished_s is None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a training that failed; binds until a person resumes it."""

    kind: str
    """permanent, exhausted, timeout, cancelled or budget."""
    failure_class: str
    attempt: int
    message: str


@dataclass(frozen=True, slots=True)
class History:
    """All attempts of one training."""

    identity: str
    attempts: tuple[Attempt, ...] = ()
    not_counted: int = 0
    """Attempts before a person last reset the retry count: they count against no limit."""
    verdict: Verdict | None = None
    not_budgeted: int = 0
    """Attempts that do not count against the budget: those before a person went on after it was used up."""
    label: str = ""
    """The job's at its first attempt: the same training under another name of its model or data keeps it, since a cluster's jobs
    are found by it. Empty: an older version's."""
    clocks: Clocks | None = None
    """Of the supervisor that wrote last."""
    result: dict[str, Any] = field(default_factory=dict)
    """What the published result was made by: account, layout, step."""

    @property
    def last(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def counted(self) -> tuple[Attempt, ...]:
        """Attempts since the retry count was last reset."""
        return self.attempts[self.not_counted :]

    def with_last(self, **changes: Any) -> History:
        """The history with its newest attempt changed."""
        return replace(self, attempts=(*self.attempts[:-1], replace(self.attempts[-1], **changes)))

    def reset_retry_count(self) -> History:
        """The history after a person has decided to go on: no verdict, and no attempt counts but one that still runs."""
        is_open = self.last is not None and self.last.is_open
        ended = len(self.attempts) - is_open
        not_budgeted = ended if self.verdict and self.verdict.kind == "budget" else self.not_budgeted
        return replace(self, verdict=None, not_counted=ended, not_budgeted=not_budgeted)

    def rename(self, job: Job) -> Job:
        """The job under the name that its first attempt got."""
        return replace(job, label=self.label or job.label)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        return {"schema": SCHEMA, NOT_COUNTED: values.pop("not_counted"), **values}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> History:
        """The history that `to_dict` wrote; keys of a newer version are ignored.

        Raises:
            ValueError, KeyError, TypeError: not a history.
        """
        if raw.get("schema") != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, found {raw.get('schema')!r}")
        attempts = tuple(
            replace(_checked(Attempt, item), excluded=tuple(map(str, item.get("excluded") or ())))
            for item in raw["attempts"]
        )
        for attempt in attempts:
            FailureClass(attempt.failure_class or FailureClass.UNKNOWN)
        verdict = _checked(Verdict, raw["verdict"]) if raw.get("verdict") else None
        clocks = _checked(Clocks, raw["clocks"]) if raw.get("clocks") else None
        label, result = str(raw.get("label") or ""), dict(raw.get("result") or {})
        counts = (int(raw[NOT_COUNTED]), verdict, int(raw.get("not_budgeted") or 0))
        return cls(str(raw["identity"]), attempts, *counts, label, clocks, result)


KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
"""By a field's annotation, without `| None`."""


def _checked(kind: type[ValueT], raw: Any) -> ValueT:
    """A value of that class from JSON: what is decided on hangs on it, so a wrong type is damage, and found here.

    Raises:
        ValueError, TypeError: a key is missing, or its value is of another type.
    """
    if not isinstance(raw, Mapping):
        raise TypeError(f"expected an object, found {raw!r}"[:200])
    values = {item.name: raw[item.name] for item in fields(kind) if item.name in raw}  # type: ignore[arg-type]
    for item in fields(kind):  # type: ignore[arg-type]
        name, _, may_lack = str(item.type).partition(" | ")
        value = values.get(item.name)
        if name not in KINDS or (value is None and (may_lack or item.name not in values)):
            continue
        is_kind = isinstance(value, KINDS[name]) and isinstance(value, bool) == (name == "bool")
        if not is_kind or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{item.name}: expected {name}, found {value!r}"[:200])
    return kind(**values)


def how_to_begin_anew(path: Path) -> str:
    """What to do about a damaged history."""
    then = f"then `{how_to_resume(path.parents[1])}`: what was saved is used, and the count of attempts begins anew"
    return f"`{move_away(path)}`, {then}"


def read(path: Path) -> History:
    """The history in a file.

    Raises:
        StorageError: it is damaged, or cannot be read.
    """
    try:
        return History.from_dict(read_json(path))
    except (ValueError, KeyError, TypeError, StorageError) as error:
        if isinstance(error.__cause__, OSError):  # the disk, not the file
            raise
        raise StorageError(f"{path} cannot be read ({error}); {how_to_begin_anew(path)}") from error


def load(path: Path, identity: str) -> History:
    """The history in a file; a new one if there is none.

    Raises:
        StorageError: it is damaged, or belongs to another training.
    """
    if not path.exists():
        return History(identity)
    history = read(path)
    if history.identity != identity:
        raise StorageError(f"{path} belongs to training {history.identity}, expected {identity}: remove the directory")
    return history


def save(path: Path, history: History) -> None:
    """Write the history.

    Raises:
        StorageError: the disk refused.
    """
    write_json(path, history.to_dict())
