"""Which files of a run are handed on, looked at first: what has changed since it was made is not published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from steps.errors import CheckpointError, ModelError
from steps.merge.stage import RECORD, difference, digests
from steps.protocol.records import Adapter, MergedModel, digest_file, digest_of
from steps.protocol.rundir import LINEAGE, read_json, storage_errors
from steps.protocol.tokenizer_files import NAMES
from steps.settings.publish import Publish
from steps.train.stage import ADAPTER_FILES

ABOUT = ("README.md", LINEAGE)
"""They tell of the run and not of the model: in no digest of it."""
OWN = frozenset({*ABOUT, RECORD, "training.json"})
"""Not of the model: the last two tell where things lie on this machine, and stay here."""


@dataclass(frozen=True, slots=True)
class File:
    """One file to hand on."""

    name: str
    """Where it goes: `merged/config.json`."""
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Contents:
    """All that is handed on."""

    files: tuple[File, ...]
    """Of the model."""
    about: tuple[File, ...]
    """That tell of it."""

    @property
    def digest(self) -> str:
        """Of the model's files: equal models are one publication, whichever run made them."""
        return digest_of({file.name: file.sha256 for file in self.files})

    @property
    def identity(self) -> str:
        """Names the publication."""
        return self.digest[:12]

    @property
    def bytes(self) -> int:
        """Of the model's files."""
        return sum(file.bytes for file in self.files)


def gather(publish: Publish, merged: MergedModel, adapter: Adapter) -> Contents:
    """The files that are asked for, each read once to be sure of it.

    Raises:
        ModelError: the merged model is not as it was made.
        CheckpointError: the adapter is not as it was made.
        StorageError: something cannot be read.
    """
    parts: list[Contents] = []
    if publish.has_merged:
        parts.append(_merged(Path(merged.path)))
    if publish.has_adapter:
        parts.append(_adapter(Path(adapter.path), adapter.digest))
    return Contents(
        tuple(file for part in parts for file in part.files), tuple(file for part in parts for file in part.about)
    )


def _merged(folder: Path) -> Contents:
    recorded: dict[str, Any] = read_json(folder / RECORD)["files"]
    with storage_errors(f"reading {folder}"):
        if problem := difference(recorded, digests(folder)):
            raise ModelError(f"{folder} is not as it was made: {problem}; merge again (`resume merge`), then publish")
        files = [
            File(f"merged/{name}", folder / name, int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in sorted(recorded.items())
            if name not in OWN
        ]
        return Contents(tuple(files), tuple(_about(folder, "merged")))


def _adapter(folder: Path, digest: str) -> Contents:
    with storage_errors(f"reading {folder}"):
        found = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())
        names = [name for name in found if any(fnmatch(name, pattern) for pattern in (*ADAPTER_FILES, *NAMES))]
        files = tuple(_file(folder, "adapter", name) for name in names)
        known = {file.path.name: file.sha256 for file in files}
        if digest_of({name: known.get(name) for name in ADAPTER_FILES}) != digest:
            raise CheckpointError(
                f"{folder} is not as it was made: its weights or its config have changed; train again"
            )
        return Contents(files, tuple(_about(folder, "adapter")))


def _about(folder: Path, part: str) -> Iterable[File]:
    return (_file(folder, part, name) for name in ABOUT if (folder / name).is_file())


def _file(folder: Path, part: str, name: str) -> File:
    path = folder / name
    return File(f"{part}/{name}", path, path.stat().st_size, digest_file(path))
