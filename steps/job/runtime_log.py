"""Ranks that the Neuron runtime aborted: nothing in them could write a failure record, but their logs hold the runtime's words.

Used by `keeper` when all ranks have ended. Only ranks that died by a signal of their own and left no record are looked at; what
others wrote themselves is better than any search in a log.
"""

from __future__ import annotations

import platform
import signal
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.failure_record import EXIT_OF_CLASS, FailureRecord, read_records, write_record
from steps.neuron_codes import NeuronCode, find_neuron_code

LAST_LINES = 200
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
        text = _end_of(shared / f"rank-{rank}.log")
        if found := find_neuron_code(text):
            write_record(shared, _record(found, rank, code, float(item["finished_s"]), text))


def _end_of(log: Path) -> str:
    try:
        with log.open(errors="replace") as lines:
            return "".join(deque(lines, maxlen=LAST_LINES))
    except FileNotFoundError:
        return ""


def _record(found: NeuronCode, rank: int, code: int, finished_s: float, text: str) -> FailureRecord:
    said = next((line.strip() for line in text.splitlines() if find_neuron_code(line) == found), "")
    return FailureRecord(
        failure_class=found.failure_class.value,
        message=f"the runtime ended the process ({signal.Signals(abs(code) % 128).name}): {said[:400]} ({found})",
        exception="NeuronRuntimeError",
        rank=rank,
        node=platform.node(),
        step=0,
        exit_code=EXIT_OF_CLASS[found.failure_class],
        time_s=finished_s,
        traceback=text[-4000:],
    )
