"""From a writer's own directory to `<train dir>/adapter`: the result is checked against the worker's list, then published whole.

Called by the supervisor only. A result is whole when every file of the worker's `finished` event is there with its size and
SHA-256; nothing of it is opened otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.protocol.records import digest_file
from steps.protocol.rundir import TrainDir, new_directory


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
