"""Compiled graphs, shared between nodes without sharing a file system for the compiler to lock.

A graph takes the Neuron compiler minutes; its cache must lie on the node's own disk (locks on FSx, EFS and NFS lose files), or
in S3, which the compiler reads and writes by itself. So where the shared cache is a folder, finished entries are copied: to each
node before training, and back once training has made a checkpoint. An entry is a folder `neuronxcc-<version>/MODULE_<hash>`,
finished when it holds `model.done`; one without `model.neff` beside it is the memory of a failure and stays where it is.

Used by `neuron_backend`, `neuron_precompile` and, by hand:

    python -m steps.train.neuron.cache /fsx/compile-cache /var/tmp/neuron-compile-cache

Knows nothing of Neuron but these names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from steps.errors import DataError, StorageError
from steps.protocol.rundir import storage_errors
from steps.s3 import list_objects
from steps.train.loop.backend import Listener, StepDone
from steps.train.neuron.planning.environment import LOCAL_CACHE

DONE, GRAPH = "model.done", "model.neff"
VARIABLE = "NEURON_COMPILE_CACHE_URL"
"""Where the compiler looks; set by whoever starts the process."""
STEADY = 2
"""After so many steps the loop needs no new graph: the first makes the optimizer's state."""


class KeepsGraphs:
    """Hands compiled graphs on before the first save is due: they can be an hour's work."""

    def __init__(self, listener: Listener, after: int, keep: Callable[[], None]) -> None:
        self._listener, self._after, self._keep = listener, after, keep

    def step_done(self, done: StepDone) -> bool:
        """As the listener says."""
        if done.step == self._after:
            self._keep()
        return self._listener.step_done(done)


def is_remote(cache: str) -> bool:
    """Whether the compiler goes there by itself, so that nothing is to be copied."""
    return cache.startswith("s3://")


def local_cache() -> Path:
    """This process's own cache on the node."""
    return Path(os.environ.get(VARIABLE, LOCAL_CACHE))


def finished_graphs(cache: Path) -> set[str]:
    """Names of all finished entries, relative to the cache; none if it does not exist."""
    entries = cache.glob("neuronxcc-*/MODULE_*")
    return {str(entry.relative_to(cache)) for entry in entries if is_finished(entry)}


def is_finished(entry: Path) -> bool:
    """Whether an entry holds a compiled graph, whole."""
    return (entry / DONE).exists() and (entry / GRAPH).exists()


def count_graphs(cache: str) -> int:
    """How many finished entries a folder or an s3:// prefix holds.

    Raises:
        StorageError: the store refused, or cannot be reached.
    """
    if not is_remote(cache):
        return len(finished_graphs(Path(cache)))
    try:
        keys = {str(item["Key"]) for item in list_objects(cache)}
    except DataError:  # nothing is stored there yet
        return 0
    return sum(key.endswith(f"/{DONE}") and f"{key.removesuffix(DONE)}{GRAPH}" in keys for key in keys)


def fetch_graphs(shared: str) -> int:
    """Before training: bring what this node lacks; returns how many entries that were. `shared` may be empty: none.

    Raises:
        StorageError: this node's disk is full or read-only.
    """
    return copy_missing(Path(shared), local_cache()) if _is_copied(shared) else 0


def keep_graphs(shared: str) -> int:
    """After a compilation: hand on what the others lack; returns how many entries that were.

    Raises:
        StorageError: the shared folder is full or read-only.
    """
    return copy_missing(local_cache(), Path(shared)) if _is_copied(shared) else 0


def _is_copied(shared: str) -> bool:
    return bool(shared) and not is_remote(shared) and not is_remote(os.environ.get(VARIABLE, ""))


def copy_missing(source: Path, target: Path) -> int:
    """Copy the finished entries that the target lacks; returns how many. Others may copy the same at the same time.

    Raises:
        StorageError: the target is full or read-only, or an entry vanished.
    """
    missing = finished_graphs(source) - finished_graphs(target)
    for name in sorted(missing):
        with storage_errors(f"copying compiled graphs to {target}"):
            _copy_entry(source / name, target / name)
    return len(missing)


def _copy_entry(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        shutil.copytree(source, beside)
        if target.is_dir() and not is_finished(target):
            shutil.rmtree(target)  # begun by a compiler that was killed, or failed
        beside.rename(target)
    except (FileExistsError, OSError) as error:
        if not is_finished(target):  # else another process was faster
            raise StorageError(f"cannot copy {source} to {target}: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Copy finished graphs from one cache to another, and say what it holds then; 1 if it holds none."""
    parser = argparse.ArgumentParser(prog="python -m steps.train.neuron.cache", description="Copy compiled graphs.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args(argv)
    copied = copy_missing(given.source, given.target)
    there = len(finished_graphs(given.target))
    print(f"{copied} graphs copied, {there} in {given.target}")
    return 0 if there else 1


if __name__ == "__main__":
    sys.exit(main())
