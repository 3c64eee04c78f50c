"""How a worker tells why it failed: `failure-<rank>.json` beside its log, and its exit code. Never by text search.

Written by workers, read by `steps/job`. The exit codes are below 128, so they read as "decided"; above are signals.
"""

from __future__ import annotations

import json
import math
import traceback
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steps.errors import CheckpointError, ConfigError, DataError, ModelError, StorageError
from steps.protocol.failure_class import CLASS_OF_EXCEPTION, FailureClass
from steps.protocol.neuron_codes import NeuronCode, find_neuron_code
from steps.protocol.rundir import errnos, write_json
from steps.protocol.train_dir import AttemptDir

SCHEMA = "hyperpod-lora/failure/1"
TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes that the kubelet keeps of a container's termination message."""

_STORAGE_ERRNOS = errnos(
    *(
        "ENOSPC",
        "EDQUOT",
        "EROFS",
        "EIO",
        "ESTALE",
        "EACCES",
        "EPERM",
        "EREMOTEIO",
        "ENXIO",
        "ENODEV",
        "ENOLCK",
        "EUCLEAN",
    )
)
_NETWORK_ERRNOS = errnos(
    *("ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENONET"),
    *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EPIPE"),
)
"""Of a socket's peer, or of a file server: then the error names a file."""


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """Why a worker failed."""

    failure_class: str
    message: str
    exception: str
    """Name of the exception's type."""
    rank: int
    node: str
    step: int
    """Steps done when it failed."""
    exit_code: int
    time_s: float
    """Unix time; the earliest record of an attempt speaks, the others are its victims."""
    traceback: str = ""

    @property
    def is_symptom(self) -> bool:
        """A healthy worker reports this too when another one has died."""
        return FailureClass(self.failure_class).meaning.is_symptom

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema": SCHEMA, **asdict(self)}

    def short(self, limit: int = TERMINATION_MESSAGE_LIMIT) -> str:
        """JSON of at most `limit` bytes (400 at least) for a termination message.

        What is too long is cut: the traceback first, at its beginning; then the other texts, at their end.
        """
        raw = self.to_dict()
        for key in ("traceback", "message", "node", "exception"):
            surplus = len(json.dumps(raw)) - limit
            if surplus <= 0:
                break
            raw[key] = _without(raw[key], surplus, at_end=key != "traceback")
        return json.dumps(raw)


def _without(text: str, surplus: int, *, at_end: bool) -> str:
    """`text` less as many characters as take `surplus` bytes in ASCII JSON (one, two, six or twelve each)."""
    characters = list(text)
    while characters and surplus > 0:
        surplus -= len(json.dumps(characters.pop(-1 if at_end else 0))) - 2
    return "".join(characters)


def record_of(error: BaseException, *, rank: int, node: str, step: int, time_s: float) -> FailureRecord:
    """The record of an exception."""
    failure_class = classify_exception(error)
    return FailureRecord(
        failure_class=failure_class.value,
        message=printable(_message_of(error)),
        exception=type(error).__name__,
        rank=rank,
        node=node,
        step=step,
        exit_code=getattr(error, "exit_code", None) or failure_class.exit_code,
        time_s=time_s,
        traceback=printable("".join(traceback.format_exception(error))),
    )


def classify_exception(error: BaseException) -> FailureClass:
    """The class of an exception raised in a worker; an unknown one is the user's, since it would happen again."""
    if isinstance(error, StorageError):
        return FailureClass.STORAGE
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS | _NETWORK_ERRNOS:
        is_file = error.errno in _STORAGE_ERRNOS or error.filename is not None
        return FailureClass.STORAGE if is_file else FailureClass.NETWORK
    if isinstance(error, ConfigError | DataError | ModelError | CheckpointError):
        return FailureClass.CONFIG
    if type(error).__name__ == "AcceleratorError" and "device-side assert" in str(error):
        return FailureClass.USER  # a bad index, say: the device is sound
    for kind in type(error).__mro__:
        if kind.__name__ in CLASS_OF_EXCEPTION:
            return CLASS_OF_EXCEPTION[kind.__name__]
    found = _neuron_code(error)
    return found.failure_class if found else FailureClass.USER


def printable(text: str) -> str:
    """`text` as any terminal and file takes it: half a surrogate pair, which is no valid Unicode, is shown by its number."""
    return text.encode(errors="backslashreplace").decode()


def _neuron_code(error: BaseException) -> NeuronCode | None:
    """The Neuron runtime has no exception of its own: torch_xla raises RuntimeError with its words. Other errors are not read."""
    return find_neuron_code(str(error)) if type(error) is RuntimeError else None


def _message_of(error: BaseException) -> str:
    message = str(error) or type(error).__name__
    found = _neuron_code(error)
    return f"{message} ({found})" if found else message


def write_record(folder: Path, record: FailureRecord) -> Path:
    """Write `failure-<rank>.json` into an attempt's folder.

    Raises:
        StorageError: it cannot be written.
    """
    path = AttemptDir(folder).failure(record.rank)
    write_json(path, record.to_dict())
    return path


def read_records(folder: Path) -> list[FailureRecord]:
    """All readable records of an attempt, the earliest first; damaged ones are left out."""
    found = []
    for path in AttemptDir(folder).failures():
        try:
            record = parse_record(path.read_text(errors="replace"))
        except OSError:  # gone since, or no file: what is readable must still speak
            continue
        if record:
            found.append(record)
    return sorted(found, key=lambda record: record.time_s)


_TYPES: dict[str, Any] = {"rank": int, "step": int, "exit_code": int, "time_s": int | float}
"""Types of the fields that hold no text."""


def parse_record(text: str) -> FailureRecord | None:
    """The record in a file or termination message, None for anything else; keys that a later version added are ignored."""
    try:
        raw = {"traceback": "", **json.loads(text)}
        values = {item.name: raw[item.name] for item in fields(FailureRecord)}
        FailureClass(values["failure_class"])
        is_sound = raw["schema"] == SCHEMA and math.isfinite(values["time_s"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    has_types = all(isinstance(value, _TYPES.get(name, str)) for name, value in values.items())
    return FailureRecord(**values) if is_sound and has_types else None
