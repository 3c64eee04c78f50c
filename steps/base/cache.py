"""Base models in the cache: published whole, checked at each use, set aside when damaged.

    <cache>/models/<name>-<key>/            the model's files, and nothing else
    <cache>/models/<name>-<key>.json        its record with every file's digest; also of a model that is used where it lies
    <cache>/models/.<name>-<key>.partial/   while it is fetched; kept when that stops, so that it can go on

Called by `stage`. A file whose size and time are as recorded is taken for whole; a changed time makes it be read again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steps.base.inspect import Contents, inspect, model_files
from steps.errors import ModelError, StorageError
from steps.protocol.records import BaseModel, digest_file, digest_of
from steps.protocol.rundir import read_json, sync_directory, sync_tree, write_json
from steps.protocol.set_aside import set_aside as rename_aside

logger = logging.getLogger(__name__)

Files = dict[str, dict[str, Any]]
"""Name → size (bytes), mtime_ns and sha256 of each file of a model."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model's place in the cache."""

    root: Path
    name: str
    key: str

    @property
    def folder(self) -> Path:
        """The model, once it is whole."""
        return self.root / "models" / f"{self.name}-{self.key}"

    @property
    def partial(self) -> Path:
        """The model, while it is fetched."""
        return self.folder.with_name(f".{self.folder.name}.partial")

    @property
    def lock(self) -> Path:
        """Held by the one process that fetches."""
        return self.folder.with_name(f".{self.folder.name}.lock")

    @property
    def marker(self) -> Path:
        """The model's record; without it a folder does not count."""
        return self.folder.with_name(f"{self.folder.name}.json")


def publish(entry: Entry, *, source: str, revision: str) -> BaseModel:
    """Check what is in `partial`, record it, and rename it to its place.

    Raises:
        ModelError: it is no whole model; it is removed, so that the next attempt starts afresh.
    """
    try:
        contents = inspect(entry.partial)
    except ModelError:
        shutil.rmtree(entry.partial)
        raise
    shutil.rmtree(entry.partial / ".cache", ignore_errors=True)  # the hub library's notes on its download
    files = _measure(contents.files)
    record = _record(entry.name, entry.folder, contents, files, source=source, revision=revision)
    sync_tree(entry.partial)
    _write(entry.marker, record, files)  # first: a folder without its record would be taken for damaged
    entry.partial.rename(entry.folder)
    sync_directory(entry.folder.parent)
    return record


def load(entry: Entry, *, full: bool = False) -> tuple[BaseModel | None, list[str]]:
    """The cached model's record, or None with what is wrong with the copy (nothing, if there is none).

    `full` reads every byte instead of trusting sizes and times.
    """
    if not entry.folder.is_dir():
        return None, []
    return _load(entry.marker, entry.folder, full=full)


def record_in_place(entry: Entry, folder: Path, *, source: str, revision: str = "") -> BaseModel:
    """The record of a folder outside the cache; its files are read when they are new or have changed.

    Raises:
        ModelError: it is no whole model.
    """
    contents = inspect(folder)
    record = _load(entry.marker, folder, full=False)[0]
    if record is None:
        files = _measure(contents.files)
        record = _record(entry.name, folder, contents, files, source=source, revision=revision)
        _write(entry.marker, record, files)
    return record


def set_aside(entry: Entry, problems: Sequence[str]) -> None:
    """Move a damaged copy out of the way (only the last one is kept) and say why."""
    shutil.rmtree(entry.folder.with_name(f".{entry.folder.name}.damaged"), ignore_errors=True)
    aside = rename_aside(entry.folder, hidden=True)
    logger.warning(
        "the cached model %s is damaged (%s): moved to %s, and made again",
        entry.folder,
        "; ".join(problems),
        aside.name,
    )


def _measure(paths: Sequence[Path]) -> Files:
    return {path.name: {**_state(path), "sha256": digest_file(path)} for path in paths}


def _state(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _record(name: str, folder: Path, contents: Contents, files: Files, *, source: str, revision: str) -> BaseModel:
    digest = digest_of([[file, state["size"], state["sha256"]] for file, state in sorted(files.items())])
    return BaseModel(
        name=name,
        path=str(folder),
        source=source,
        revision=revision or digest,
        digest=digest,
        model_type=str(contents.config["model_type"]),
        parameters=contents.parameters,
        bytes=contents.bytes,
        dtype=contents.dtype,
    )


def _write(marker: Path, record: BaseModel, files: Files) -> None:
    write_json(marker, {**record.to_dict(), "files": files})


def _load(marker: Path, folder: Path, *, full: bool) -> tuple[BaseModel | None, list[str]]:
    try:
        raw = read_json(marker)
        record = replace(BaseModel.from_dict(raw), path=str(folder))
        files: Files = raw["files"]
        problems = _compare(folder, files, full=full)
    except (StorageError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, [f"{marker.name} is missing or damaged ({error})"]
    return (None, problems) if problems else (record, [])


def _compare(folder: Path, files: Files, *, full: bool) -> list[str]:
    """What differs between the folder and its record."""
    there = {path.name: path for path in model_files(folder)}
    problems = [f"{name} is missing" for name in files if name not in there]
    problems += [f"{name} was added" for name in there if name not in files]
    for name in sorted(files.keys() & there.keys()):
        recorded, found = files[name], _state(there[name])
        if found["size"] != recorded["size"]:
            problems.append(f"{name} has {found['size']} bytes instead of {recorded['size']}")
        elif (full or found["mtime_ns"] != recorded["mtime_ns"]) and digest_file(there[name]) != recorded["sha256"]:
            problems.append(f"{name} has other content than when it was recorded")
    return problems
