"""The program of the compile job, one process: `python -m steps.export.worker <directory>/spec.json --attempt 1`.

The compiled model goes to its own place, whole or not at all; the job's result is the record alone. Says nothing while the
compiler works: the supervisor's deadline for a first step applies.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from steps.errors import LoraFlowError, StorageError
from steps.export.compile import RECORD, CompileRequest, compile_model
from steps.protocol.events import EventWriter
from steps.protocol.failure_class import EXIT_OK
from steps.protocol.failure_record import record_of, write_record
from steps.protocol.records import digest_file
from steps.protocol.rundir import TrainDir, read_json, write_json

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile; returns the exit code, never raises."""
    parser = argparse.ArgumentParser(prog="python -m steps.export.worker", description="Compile as a job.")
    parser.add_argument("spec", type=Path, help="spec.json in the job's directory")
    parser.add_argument("--attempt", type=int, required=True, help="number of this attempt, from 1")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    directory = TrainDir(given.spec.resolve().parent)
    try:
        run(directory, given.attempt)
    except Exception as error:
        record = record_of(error, rank=0, node=platform.node(), step=0, time_s=time.time())
        logger.error("%s: %s", record.exception, record.message, exc_info=not isinstance(error, LoraFlowError))
        try:
            write_record(directory.attempt(given.attempt), record)
        except StorageError as second:  # the exit code still tells the class
            logger.error("no failure record: %s", second)
        return record.exit_code
    return EXIT_OK


def run(directory: TrainDir, attempt: int) -> None:
    """Compile what the spec names, and leave the record as the job's result.

    Raises:
        LoraFlowError: as `compile_model`.
    """
    spec = read_json(directory.spec)
    events = EventWriter(directory.events(attempt), attempt=attempt)
    events.emit("started", 0, of=1, world=1, processes=1, node=platform.node(), pid=os.getpid())
    events.emit("model_loaded", 0, seconds=0.0)
    begun = time.monotonic()
    request = CompileRequest(**spec["request"])
    compiled = compile_model(Path(spec["merged"]), Path(spec["out"]), request, parents=spec["parents"])
    file = directory.files(attempt).result / RECORD
    write_json(file, compiled.to_dict())
    files = {RECORD: {"bytes": file.stat().st_size, "sha256": digest_file(file)}}
    seconds = round(time.monotonic() - begun, 4)
    events.emit("finished", 1, result=str(file.parent.relative_to(directory.path)), files=files, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
