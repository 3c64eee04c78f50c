"""What an attempt leaves: evidence of its failure, or a result that is checked and published.

Evidence is kept before anything is deleted, in `attempts/NNN/evidence/`. The workers' stacks are asked for by a file that the
agent watches for: no signal crosses from the supervisor to a worker, so it works wherever the directory is shared.

A result is whole when every file of the worker's `finished` event is there with its size and SHA-256; nothing of it is opened
otherwise. It is published whole, from the writer's own directory to `<train dir>/adapter`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steps.job.classify import Failure
from steps.job.job import Job
from steps.job.snapshot import JobSnapshot, Launcher
from steps.protocol.records import digest_file
from steps.protocol.rundir import TrainDir, new_directory, storage_errors, write_json
from steps.protocol.train_dir import AttemptDir

STACKS_WAIT_S = 3.0
LOG_LINES = 400


@dataclass(frozen=True, slots=True)
class JobResult:
    """A finished job."""

    result_dir: Path
    attempts: int
    account: dict[str, Any]
    """See `goodput.account`."""
    layout: dict[str, Any]
    """Data of the last attempt's `started` event: world, processes and so on."""
    step: int
    """Steps done."""
    is_reused: bool = False
    """It had been published before; nothing ran."""


def waits_of(files: AttemptDir) -> list[str]:
    """What the nodes of an attempt wait for before their ranks begin, in their own words."""
    found = []
    for agent in files.agents():
        with contextlib.suppress(OSError):  # it has begun
            found.append(agent.waiting.read_text(errors="replace"))
    return [words for words in found if words]


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


def result_damage(directory: TrainDir, finished: Mapping[str, Any]) -> str | None:
    """What is wrong with the result that a `finished` event names, in words; None if it is whole."""
    name, files = finished.get("result"), finished.get("files")
    if not isinstance(name, str) or not isinstance(files, dict) or not files:
        return "its `finished` event names no result and files"
    folder = (directory.path / name).resolve()
    if not folder.is_relative_to(directory.path.resolve()):
        return f"its result {name} lies outside {directory.path}"
    return next((damage for file, told in files.items() if (damage := _file_damage(folder, file, told))), None)


def _file_damage(folder: Path, name: str, told: object) -> str | None:
    file = folder / name
    if not file.resolve().is_relative_to(folder):
        return f"its file {name} lies outside {folder}"
    if not isinstance(told, dict) or not {"bytes", "sha256"} <= told.keys():
        return f"its `finished` event tells no size and SHA-256 of {name}"
    if not file.is_file():
        return f"{file} is missing"
    if file.stat().st_size != told["bytes"]:
        return f"{file} has {file.stat().st_size} bytes, the worker wrote {told['bytes']}"
    if digest_file(file) != told["sha256"]:
        return f"{file} has other content than the worker wrote"
    return None


def publish(directory: TrainDir, finished: Mapping[str, Any]) -> Path:
    """Copy the result's files to their final place, all or nothing; what is published already stays.

    Raises:
        StorageError: the disk refused.
    """
    source = directory.path / str(finished["result"])
    with new_directory(directory.adapter) as beside:
        for name in finished["files"]:
            target = beside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
    return directory.adapter
