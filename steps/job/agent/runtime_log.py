"""What the Neuron runtime said in the logs of ranks.

Used by the agent when all its ranks have ended: a rank that the runtime aborted could not write a failure record. A record that
a rank did write is better than any search in a log. Used by `attempt` when an attempt looks like a hang or a lost connection:
broken hardware ends as a time-out of its own rank or of a peer's, and only the log tells.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import FailureRecord, read_records, write_record
from steps.protocol.neuron_codes import NeuronCode, find_neuron_code
from steps.protocol.train_dir import AttemptDir

LAST_BYTES = 65536
"""Of a rank's log: the runtime's words are followed by the stack of the abort and a dump of its state."""
ABORTS = frozenset({-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, 128 + signal.SIGABRT, 128 + signal.SIGSEGV})


def record_silent_deaths(shared: Path, ranks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a failure record for each rank that was aborted, and whose log in `shared` says why.

    `ranks`: as in exit.json.

    Raises:
        StorageError: it cannot be written.
    """
    spoke = {record.rank for record in read_records(shared)}
    for name, item in ranks.items():
        rank, code = int(name), int(item["exit_code"])
        if code not in ABORTS or rank in spoke:
            continue
        text = _end_of(AttemptDir(shared).log(rank))
        if found := find_neuron_code(text):
            write_record(shared, _record(found, rank, code, float(item["finished_s"]), text))


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _words_of(found: NeuronCode, text: str) -> str:
    said = next((line.strip() for line in text.splitlines() if find_neuron_code(line) == found), "")
    return f"{said[:400]} ({found})"


def find_broken_hardware(shared: Path) -> tuple[int, str] | None:
    """(rank, the runtime's words) of the first rank whose log in `shared` names broken hardware."""
    logs = AttemptDir(shared).logs()
    for rank in sorted(logs):
        text = _end_of(logs[rank])
        found = find_neuron_code(text)
        if found and found.failure_class is FailureClass.ACCELERATOR:
            return rank, _words_of(found, text)
    return None


def _record(found: NeuronCode, rank: int, code: int, finished_s: float, text: str) -> FailureRecord:
    return FailureRecord(
        failure_class=found.failure_class.value,
        message=f"the runtime ended the process ({signal.Signals(abs(code) % 128).name}): {_words_of(found, text)}",
        exception="NeuronRuntimeError",
        rank=rank,
        node=platform.node(),
        step=0,
        exit_code=found.failure_class.exit_code,
        time_s=finished_s,
        traceback=text[-4000:],
    )
