"""TorchNeuron's compiled graphs, shared between nodes and runs: a plain copy of files, both ways.

A graph is one file, `ab/cd/<hash>.neff`, in TORCH_NEURONX_NEFF_CACHE_DIR. The device writes it beside and renames it, so whatever
ends in .neff is whole; its locks lie in another folder. Before training a node brings what it lacks from the shared folder
`launcher.compile_cache`, after the second step and with every save it hands on what is new. Used by the torch backend. The layout
is that of the beta's source (SDK 2.33): nobody here has seen it on a device.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from steps.protocol.rundir import storage_errors
from steps.train.torchneuron.planning import NEFF_CACHE

VARIABLE = "TORCH_NEURONX_NEFF_CACHE_DIR"
"""Where the device keeps and looks for graphs; set by whoever starts the process."""


def local_cache() -> Path:
    """This process's own cache on the node."""
    return Path(os.environ.get(VARIABLE, NEFF_CACHE))


def graphs(cache: Path) -> set[Path]:
    """All finished graphs, relative to the cache; none if it does not exist."""
    return {file.relative_to(cache) for file in cache.rglob("*.neff")}


def fetch_graphs(shared: str) -> int:
    """Before training: bring what this node lacks; returns how many graphs that were. `shared` may be empty: none.

    Raises:
        StorageError: this node's disk is full or read-only.
    """
    return copy_missing(Path(shared), local_cache()) if shared else 0


def keep_graphs(shared: str) -> int:
    """After a compilation: hand on what the others lack; returns how many graphs that were.

    Raises:
        StorageError: the shared folder is full or read-only.
    """
    return copy_missing(local_cache(), Path(shared)) if shared else 0


def copy_missing(source: Path, target: Path) -> int:
    """Copy the graphs that the target lacks; returns how many. Others may copy the same at the same time.

    Raises:
        StorageError: the target is full or read-only.
    """
    missing = sorted(graphs(source) - graphs(target))
    for name in missing:
        with storage_errors(f"copying compiled graphs to {target}"):
            _copy(source / name, target / name)
    return len(missing)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        shutil.copyfile(source, beside)
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)
