"""The door of the room: what a base model is (`describe`), and the base model itself (`fetch`), once, for all runs.

Called by the flow's `start` (describe, before anything heavy) and `base` step (fetch), and by the command line. After
`fetch` everything works offline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps.base import cache as store
from steps.base.inspect import read_config
from steps.base.progress import Say, silent
from steps.base.sources.source import ModelSource, RandomSource, S3Source, WheelSource, find_source
from steps.protocol.records import BaseModel, identity_of
from steps.protocol.rundir import held_lock, require_space
from steps.settings.catalog import ModelPreset

LOCK_S = 4 * 3600.0
"""How long to wait for another process that fetches the same model: a large one over a slow line."""


def describe(model: ModelPreset, *, cache: Path) -> dict[str, Any]:
    """The model's config.json (as parsed), without fetching its weights.

    Raises:
        ModelError: it cannot be had.
        StorageError, DataError: an s3:// prefix that cannot be read.
    """
    source = find_source(model)
    entry = _entry(model, source, cache)
    for folder in (entry.folder, source.in_place()):
        if folder and (folder / "config.json").is_file():
            return read_config(folder)
    return source.describe(entry.partial)


def config_at_hand(model: ModelPreset, *, cache: Path) -> dict[str, Any] | None:
    """The model's config.json where it is on this machine already; None where it would have to be fetched.

    Raises:
        ModelError: it is damaged.
    """
    source = find_source(model)
    if isinstance(source, WheelSource | RandomSource):
        return source.describe(cache)
    if isinstance(source, S3Source):
        return None  # even its name in the cache follows from what the bucket holds now
    entry = _entry(model, source, cache)
    folders = (folder for folder in (entry.folder, source.in_place()) if folder)
    return next((read_config(folder) for folder in folders if (folder / "config.json").is_file()), None)


def fetch(
    model: ModelPreset, *, cache: Path, min_free_gib: float, progress: Say | None = None, full_check: bool = False
) -> BaseModel:
    """The base model in a local folder: fetched or converted unless it is there and whole.

    Of several processes one fetches, the others wait for it. `progress(what, done, of)` hears how far it is (bytes, or
    tensors of a conversion); `full_check` reads every byte of a cached copy.

    Raises:
        ModelError: it cannot be had, or is no usable model.
        StorageError: no room, no permission, or S3 out of reach.
    """
    source = find_source(model)
    entry = _entry(model, source, cache)
    record, _ = store.load(entry, full=full_check)
    if record:
        return record
    if folder := source.in_place():
        revision = folder.name if source.label.startswith("hub:") else ""
        return store.record_in_place(entry, folder, source=source.label, revision=revision)
    with held_lock(entry.lock, timeout_s=LOCK_S, what=f"fetching {source.label}"):
        record, problems = store.load(entry, full=full_check)
        if record:
            return record
        if problems:
            store.set_aside(entry, problems)
        return _fill(entry, source, min_free_gib, progress or silent)


def _entry(model: ModelPreset, source: ModelSource, cache: Path) -> store.Entry:
    return store.Entry(root=cache.expanduser().absolute(), name=model.name or "model", key=identity_of(source.key))


def _fill(entry: store.Entry, source: ModelSource, min_free_gib: float, say: Say) -> BaseModel:
    def room(needed_bytes: int) -> None:
        there = sum(path.stat().st_size for path in entry.partial.rglob("*") if path.is_file())
        require_space(
            entry.root,
            max(needed_bytes - there, 0),
            keep_gib=min_free_gib,
            what=f"the model {entry.name}",
            setting="storage.cache",
        )

    entry.partial.mkdir(parents=True, exist_ok=True)
    revision = source.fill(entry.partial, room=room, say=say)
    return store.publish(entry, source=source.label, revision=revision)
