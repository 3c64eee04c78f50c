"""Checkpoints on disk: which are complete, which one to resume from, which may go.

A checkpoint is a directory `step-<step>.<claim>` whose COMPLETE.json was written last and lists every file with size and
SHA-256. Complete means: that record exists and the files match it. The worker writes and prunes, worker and supervisor read;
only metadata and bytes are looked at, never a tensor.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.errors import CheckpointError, StorageError
from steps.records import digest_file
from steps.rundir import read_json, sync_tree, write_json

SCHEMA = "hyperpod-lora/checkpoint/1"
COMPLETE = "COMPLETE.json"
_NAME = re.compile(r"^step-(\d+)\.(\d+)-(\d+)$")


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """Who writes: an attempt, and its incarnation (a pod may be recreated within an attempt). Later claims are greater."""

    attempt: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.attempt:03d}-{self.incarnation:02d}"

    @classmethod
    def parse(cls, text: str) -> Claim | None:
        """The claim that `str` wrote, None for other text."""
        match = re.fullmatch(r"(\d+)-(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None


def take_claim(writers: Path, attempt: int) -> Claim:
    """Claim the right to write as `attempt`, by an exclusive mkdir in `writers`.

    Raises:
        CheckpointError: a higher attempt has already begun; this process is a straggler and must not write.
    """
    writers.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [claim for path in writers.iterdir() if (claim := Claim.parse(path.name))]
        newest = max(taken, default=Claim(0, 0))
        if newest.attempt > attempt:
            raise CheckpointError(
                f"attempt {attempt} of {writers.parent} starts after attempt {newest.attempt} has begun: it may not write"
            )
        incarnation = 1 + max((claim.incarnation for claim in taken if claim.attempt == attempt), default=0)
        claim = Claim(attempt, incarnation)
        try:
            (writers / str(claim)).mkdir()
        except FileExistsError:
            continue
        return claim


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint directory whose COMPLETE.json could be read; its files are checked by `damage`."""

    path: Path
    step: int
    claim: Claim
    identity: str
    layout: dict[str, Any]
    files: dict[str, dict[str, Any]]
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, Claim]:
        """Sorts checkpoints from old to new."""
        return self.step, self.claim

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(item["bytes"]) for item in self.files.values())


@dataclass(frozen=True, slots=True)
class Rejected:
    """A checkpoint directory that cannot be used, and why, in words."""

    path: Path
    reason: str
    damaged: bool
    """True: incomplete or damaged, to be set aside. False: whole, but another run's or layout's."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where to resume: the newest usable checkpoint, if any, and what was passed over on the way to it."""

    checkpoint: Checkpoint | None
    rejected: tuple[Rejected, ...] = ()


def checkpoint_path(folder: Path, step: int, claim: Claim) -> Path:
    """Directory of the checkpoint of `step` that `claim` writes."""
    return folder / f"step-{step:06d}.{claim}"


def commit(
    path: Path, *, step: int, claim: Claim, identity: str, layout: dict[str, Any], metrics: dict[str, Any] | None = None
) -> Checkpoint:
    """Make a written directory a complete checkpoint: fsync all files, then write COMPLETE.json.

    Raises:
        StorageError: the record cannot be written.
    """
    files = {
        str(file.relative_to(path)): {"bytes": file.stat().st_size, "sha256": digest_file(file)}
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != COMPLETE
    }
    sync_tree(path)
    record = {
        "schema": SCHEMA,
        "step": step,
        "claim": str(claim),
        "identity": identity,
        "layout": layout,
        "metrics": metrics or {},
        "files": files,
    }
    write_json(path / COMPLETE, record)
    return Checkpoint(path, step, claim, identity, layout, files, metrics or {})


def read(path: Path) -> Checkpoint | Rejected:
    """Read one directory's COMPLETE.json; the files themselves are not looked at."""
    if not (path / COMPLETE).is_file():
        return Rejected(path, f"{path.name} has no {COMPLETE}: its save was cut off", damaged=True)
    try:
        raw = read_json(path / COMPLETE)
        if raw.get("schema") != SCHEMA:
            return Rejected(
                path, f"{path.name} has schema {raw.get('schema')!r}, this version reads {SCHEMA!r}", damaged=False
            )
        claim = Claim.parse(str(raw["claim"]))
        if claim is None:
            raise ValueError(f"claim {raw['claim']!r}")
        found = Checkpoint(
            path,
            int(raw["step"]),
            claim,
            str(raw["identity"]),
            dict(raw["layout"]),
            dict(raw["files"]),
            dict(raw["metrics"]),
        )
    except (StorageError, KeyError, ValueError, TypeError) as error:
        return Rejected(path, f"{path.name} has an unreadable {COMPLETE}: {error}", damaged=True)
    return found


def damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the files, in words, or None: missing, of another size or content, or not in the record."""
    for name, expected in checkpoint.files.items():
        file = checkpoint.path / name
        if not file.is_file():
            return f"{checkpoint.path.name}/{name} is missing"
        size = file.stat().st_size
        if size != expected["bytes"]:
            return f"{checkpoint.path.name}/{name} has {size} bytes, {expected['bytes']} were saved"
        if digest_file(file) != expected["sha256"]:
            return f"{checkpoint.path.name}/{name} has other content than was saved"
    extra = sorted(
        str(file.relative_to(checkpoint.path))
        for file in checkpoint.path.rglob("*")
        if file.is_file() and file.name != COMPLETE and str(file.relative_to(checkpoint.path)) not in checkpoint.files
    )
    return f"{checkpoint.path.name} holds {', '.join(extra)}, which its save did not write" if extra else None


def directories(folder: Path) -> list[Path]:
    """All checkpoint directories in `folder`, newest step and claim first (compared as integers)."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return [
        path for match, path in sorted(found, key=lambda item: [int(part) for part in item[0].groups()], reverse=True)
    ]


def choose(
    folder: Path, *, identity: str, fits: Callable[[dict[str, Any]], str | None] = lambda layout: None
) -> Choice:
    """The newest complete checkpoint of this identity whose layout fits.

    `fits` says why a layout does not fit, None if it does. Looks at no more directories than it has to.
    """
    rejected: list[Rejected] = []
    for path in directories(folder):
        found = read(path)
        if isinstance(found, Rejected):
            rejected.append(found)
        elif found.identity != identity:
            rejected.append(Rejected(path, f"{path.name} belongs to training {found.identity}, not {identity}", False))
        elif (reason := fits(found.layout)) is not None:
            rejected.append(Rejected(path, f"{path.name} does not fit: {reason}", damaged=False))
        elif (reason := damage(found)) is not None:
            rejected.append(Rejected(path, reason, damaged=True))
        else:
            return Choice(found, tuple(rejected))
    return Choice(None, tuple(rejected))


def set_aside(rejected: Iterable[Rejected]) -> list[Path]:
    """Rename damaged directories to `<name>.damaged[-n]`, so that they are kept for a look and never tried again."""
    moved = []
    for item in rejected:
        if item.damaged and item.path.is_dir():
            moved.append(rename_aside(item.path))
    return moved


def rename_aside(path: Path) -> Path:
    """Rename a damaged file or directory to the first free `<name>.damaged[-n]`; returns the new path."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged{'' if number == 1 else f'-{number}'}")).exists():
        number += 1
    path.rename(target)
    return target


def newest_step(folder: Path) -> int:
    """Step of the newest directory with a readable COMPLETE.json, 0 if there is none. Cheap: no file is hashed."""
    for path in directories(folder):
        found = read(path)
        if isinstance(found, Checkpoint):
            return found.step
    return 0


def prune(folder: Path, *, keep: int, claim: Claim, protect: Iterable[Path] = ()) -> list[Path]:
    """Delete all but the newest `keep` complete checkpoints; returns what was deleted.

    Touches only directories of `claim` or older claims, never a protected one, and never the newest complete one. The record
    goes first, so that a deletion cut off in the middle leaves a partial checkpoint, never a complete-looking one.
    """
    complete = [found for path in directories(folder) if isinstance(found := read(path), Checkpoint)]
    kept = {found.path for found in complete[: max(keep, 1)]} | set(protect)
    deleted = []
    for found in complete:
        if found.path in kept or found.claim > claim:
            continue
        (found.path / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(found.path, ignore_errors=True)
        deleted.append(found.path)
    return deleted
