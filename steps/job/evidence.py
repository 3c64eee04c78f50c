"""Keeps what a person needs after a failure, before anything is deleted: `attempts/NNN/evidence/`.

Also asks for the workers' stacks: a file that the keeper (here) or the entry wrapper (in a pod) watches for. No signal needs
to cross from the supervisor to a worker for that, so it works wherever the directory is shared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from steps.job.classify import Failure
from steps.job.job import Job
from steps.job.snapshot import JobSnapshot, Launcher
from steps.protocol.rundir import storage_errors, write_json

STACKS_WAIT_S = 3.0
LOG_LINES = 400


def collect_stacks(job: Job, attempt: int, *, sleep: Callable[[float], None]) -> None:
    """Ask every rank for its stack and wait a moment for the files."""
    files = job.directory.files(attempt)
    with storage_errors(f"writing {files.stacks_wanted}"):
        files.stacks_wanted.touch()
    for _ in range(int(STACKS_WAIT_S / 0.25)):
        if len(files.stacks()) >= job.world:
            return
        sleep(0.25)


def save_evidence(job: Job, attempt: int, snapshot: JobSnapshot, failure: Failure, launcher: Launcher) -> Path:
    """Write the snapshot, the failure, the first failing rank's log and rank 0's, the platform's own words, and the stacks.

    Raises:
        StorageError: the disk refused.
    """
    files = job.directory.files(attempt)
    folder = files.evidence
    write_json(folder / "snapshot.json", snapshot.to_dict())
    write_json(folder / "failure.json", asdict(failure))
    with storage_errors(f"writing {folder}"):
        for rank in sorted({0, failure.rank or 0}):
            (folder / f"rank-{rank}.log").write_text(launcher.logs(job, attempt, rank))
        for name, text in launcher.evidence(job, attempt).items():
            (folder / name).write_text(text)
        for stack in files.stacks():
            shutil.copyfile(stack, folder / stack.name)
    return folder
