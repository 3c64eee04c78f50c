"""Checkpoints on disk: which are complete, which one to resume from, which may go.

A checkpoint is a directory `step-<step>.<writer>` whose COMPLETE.json was written last and lists every file with size and
SHA-256. Complete means: that record exists and the files match it. The worker writes and prunes, worker and supervisor read;
only metadata and bytes are looked at, never a tensor.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from steps.errors import CheckpointError, StorageError
from steps.plain_text import move_away
from steps.protocol.records import digest_file
from steps.protocol.rundir import read_json, storage_errors, sync_directory, sync_tree, write_json
from steps.protocol.set_aside import set_aside
from steps.protocol.writer import Writer, register_writer

__all__ = ["Writer", "register_writer"]  # the stages use them from here

SCHEMA = "hyperpod-lora/checkpoint/1"
COMPLETE = "COMPLETE.json"
_NAME = re.compile(r"step-(\d+)\.(\d+)-(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint directory whose COMPLETE.json could be read; its files are checked by `damage`."""

    path: Path
    step: int
    writer: Writer
    identity: str
    layout: dict[str, Any]
    files: dict[str, dict[str, Any]]
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, Writer]:
        """Sorts checkpoints from old to new."""
        return self.step, self.writer

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


def checkpoint_path(folder: Path, step: int, writer: Writer) -> Path:
    """Directory of the checkpoint of `step` that `writer` writes."""
    return folder / f"step-{step:06d}.{writer}"


def commit(
    path: Path,
    *,
    step: int,
    writer: Writer,
    identity: str,
    layout: dict[str, Any],
    metrics: dict[str, Any] | None = None,
) -> Checkpoint:
    """Make a written directory a complete checkpoint: fsync all files, then write COMPLETE.json.

    Raises:
        StorageError: a file cannot be read, or the record cannot be written.
        CheckpointError: the directory holds a link; what it points to may change or vanish.
    """
    with storage_errors(f"committing {path}"):
        files = {
            name: {"bytes": (path / name).stat().st_size, "sha256": digest_file(path / name)} for name in names_in(path)
        }
        links = [name for name in files if (path / name).is_symlink()]
        if links:
            raise CheckpointError(f"{path} cannot be committed: {', '.join(links)} is a link, expected only files")
        sync_tree(path)
        sync_directory(path.parent)
    record = {
        "schema": SCHEMA,
        "step": step,
        "claim": str(writer),
        "identity": identity,
        "layout": layout,
        "metrics": metrics or {},
        "files": files,
    }
    write_json(path / COMPLETE, record)
    return Checkpoint(path, step, writer, identity, layout, files, metrics or {})


def names_in(path: Path) -> list[str]:
    """Paths of all files and links below `path`, relative to it, sorted; COMPLETE.json itself is left out."""
    files = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file() or file.is_symlink())
    return sorted(name for name in files if name != COMPLETE)


def read(path: Path) -> Checkpoint | Rejected:
    """Read one directory's COMPLETE.json; the files themselves are not looked at.

    Raises:
        OSError: it is there and cannot be read: the disk or the mount fails, which may pass.
    """
    if not (path / COMPLETE).is_file() or (path / COMPLETE).is_symlink():
        return Rejected(path, f"{path.name} has no {COMPLETE}: its save was cut off", damaged=True)
    try:
        raw = read_json(path / COMPLETE)
        if raw.get("schema") != SCHEMA:
            return Rejected(
                path, f"{path.name} has schema {raw.get('schema')!r}, this version reads {SCHEMA!r}", damaged=False
            )
        return _parse(path, raw)
    except (StorageError, ValueError) as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path / COMPLETE)) from error
        return Rejected(path, f"{path.name} has an unreadable {COMPLETE}: {error}", damaged=True)


def _parse(path: Path, raw: dict[str, Any]) -> Checkpoint:
    """Take nothing on trust: what is resumed from and what is deleted hangs on it."""
    for key, kind in _KINDS.items():
        if type(raw.get(key)) is not kind:
            raise ValueError(f"{key}: expected {kind.__name__}, found {raw.get(key)!r}")
    step, writer = raw["step"], Writer.parse(raw["claim"])
    if writer is None or checkpoint_path(path.parent, step, writer) != path:
        raise ValueError(f"it is of step {step}, claim {raw['claim']!r}: another directory's")
    for name, item in raw["files"].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"file {name!r} would be outside of the checkpoint")
        if not isinstance(item, dict) or type(item.get("bytes")) is not int or type(item.get("sha256")) is not str:
            raise ValueError(f"file {name!r}: expected bytes and sha256, found {item!r}")
    return Checkpoint(path, step, writer, raw["identity"], raw["layout"], raw["files"], raw["metrics"])


_KINDS = {"step": int, "claim": str, "identity": str, "layout": dict, "files": dict, "metrics": dict}


def damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the files, in words, or None: missing, of another size or content, or not in the record.

    Raises:
        OSError: a file is there and cannot be read, which may pass.
    """
    for name, expected in checkpoint.files.items():
        file = checkpoint.path / name
        if not file.is_file():
            return f"{checkpoint.path.name}/{name} is missing"
        if file.is_symlink():
            return f"{checkpoint.path.name}/{name} is a link, a file was saved"
        size = file.stat().st_size
        if size != expected["bytes"]:
            return f"{checkpoint.path.name}/{name} has {size} bytes, {expected['bytes']} were saved"
        if digest_file(file) != expected["sha256"]:
            return f"{checkpoint.path.name}/{name} has other content than was saved"
    extra = [name for name in names_in(checkpoint.path) if name not in checkpoint.files]
    return f"{checkpoint.path.name} holds {', '.join(extra)}, which its save did not write" if extra else None


def directories(folder: Path) -> list[Path]:
    """All checkpoint directories in `folder`, newest step and writer first (compared as integers)."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = [
            (tuple(int(part) for part in match.groups()), entry.name)
            for entry in entries
            if (match := _NAME.fullmatch(entry.name)) and not entry.is_symlink()
        ]
    return [folder / name for _, name in sorted(found, reverse=True)]


def choose(
    folder: Path, *, identity: str, fits: Callable[[dict[str, Any]], str | None] = lambda layout: None
) -> Choice:
    """The newest complete checkpoint of this identity whose layout fits.

    `fits` says why a layout does not fit, None if it does. Looks at no more directories than it has to. Only damage is passed
    over: what cannot be read now may be whole, and an older one in its place would lose what was learned.

    Raises:
        StorageError: a checkpoint cannot be read.
    """
    rejected: list[Rejected] = []
    with _readable(folder):
        found_paths = directories(folder)
    for path in found_paths:
        with _readable(path):
            found = _usable(path, identity, fits)
        if isinstance(found, Checkpoint):
            return Choice(found, tuple(rejected))
        rejected.append(found)
    return Choice(None, tuple(rejected))


def _usable(path: Path, identity: str, fits: Callable[[dict[str, Any]], str | None]) -> Checkpoint | Rejected:
    found = read(path)
    if isinstance(found, Rejected):
        return found
    if found.identity != identity:
        return Rejected(path, f"{path.name} belongs to training {found.identity}, not {identity}", damaged=False)
    if (misfit := fits(found.layout)) is not None:
        return Rejected(path, f"{path.name} does not fit: {misfit}", damaged=False)
    wrong = damage(found)
    return found if wrong is None else Rejected(path, wrong, damaged=True)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read ({error.strerror or error}), and nothing older is taken in its place: look at the disk or "
            f"the mount; if it is lost for good, `{move_away(path)}` makes the next attempt begin with the one before"
        ) from error


def set_aside_damaged(rejected: Iterable[Rejected]) -> list[Path]:
    """Rename damaged directories to `<name>.damaged[-n]`, so that they are kept for a look and never tried again.

    Raises:
        StorageError: they cannot be renamed.
    """
    moved = []
    for item in rejected:
        if item.damaged and item.path.is_dir():
            moved.append(set_aside(item.path))
    return moved


def newest_step(folder: Path) -> int:
    """Step of the newest directory with a readable COMPLETE.json, 0 if there is none. Cheap: no file is hashed."""
    for path in directories(folder):
        with contextlib.suppress(OSError):  # a look for people and for the account: who resumes reads it properly
            found = read(path)
            if isinstance(found, Checkpoint):
                return found.step
    return 0


def prune(folder: Path, *, keep: int, writer: Writer, protect: Iterable[Path] = ()) -> list[Path]:
    """Delete all but the newest `keep` complete checkpoints; returns what was deleted.

    Touches only directories of `writer` or older writers, never a protected one, and never the newest complete one. The record
    goes first, so that a deletion cut off in the middle leaves a partial checkpoint, never a complete-looking one.

    Raises:
        StorageError: a checkpoint cannot be read, or one that should go cannot be deleted.
    """
    with storage_errors(f"reading {folder}"):
        complete = [found for path in directories(folder) if isinstance(found := read(path), Checkpoint)]
    kept = {found.path for found in complete[: max(keep, 1)]} | set(protect)
    deleted = []
    for found in complete:
        if found.path in kept or found.writer > writer:
            continue
        with storage_errors(f"deleting {found.path}"):
            (found.path / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(found.path, ignore_errors=True)
        deleted.append(found.path)
    return deleted
