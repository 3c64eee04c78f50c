"""Compiled graphs, shared between nodes without sharing a file system for the compiler to lock.

A graph takes the Neuron compiler minutes; its cache must lie on the node's own disk (locks on FSx, EFS and NFS lose files). So
finished entries are copied: from the shared folder to each node before training, and back once training has made a checkpoint.
An entry is a folder `neuronxcc-<version>/MODULE_<hash>`, finished when it holds `model.done`. Used by `neuron_backend` and, to
judge it, by whoever runs the precompile job, whose graphs are compiled after its training has ended:

    python -m steps.train.neuron_cache /fsx/compile-cache /var/tmp/neuron-compile-cache      (before)
    python -m steps.train.neuron_cache /var/tmp/neuron-compile-cache /fsx/compile-cache      (after)

Knows nothing of Neuron but these names.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from steps.errors import StorageError
from steps.rundir import storage_errors
from steps.train.spec import TrainSpec

DONE = "model.done"
PRECOMPILE_STEPS = 3
"""First, middle and last step, in case their graphs differ."""


def finished_graphs(cache: Path) -> set[str]:
    """Names of all finished entries, relative to the cache; none if it does not exist."""
    return {str(path.parent.relative_to(cache)) for path in cache.glob(f"neuronxcc-*/MODULE_*/{DONE}")}


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
        if target.is_dir() and not (target / DONE).exists():
            shutil.rmtree(target)  # begun by a compiler that was killed
        beside.rename(target)
    except (FileExistsError, OSError) as error:
        if not (target / DONE).exists():  # else another process was faster
            raise StorageError(f"cannot copy {source} to {target}: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def precompile_spec(spec: TrainSpec) -> TrainSpec:
    """The same graphs in few steps, in a directory of its own, for

        neuron_parallel_compile torchrun … -m steps.train.worker <directory>/spec.json --attempt 1

    Graphs depend on shapes, layout and the fused optimizer step, not on the number of steps. What it computes is zeros.
    """
    steps = min(PRECOMPILE_STEPS, spec.steps)
    changes = {
        "directory": f"{spec.directory}-precompile",
        "identity": f"{spec.identity}-precompile",
        "steps": steps,
        "checkpoint_every": steps,
        "validation_every": steps,
        "graphs_only": True,
    }
    return spec.model_copy(update=changes)


def main(argv: Sequence[str] | None = None) -> int:
    """Copy finished graphs from one cache to another, and say what it holds then; 1 if it holds none."""
    parser = argparse.ArgumentParser(prog="python -m steps.train.neuron_cache", description="Copy compiled graphs.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args(argv)
    copied = copy_missing(given.source, given.target)
    there = len(finished_graphs(given.target))
    print(f"{copied} graphs copied, {there} in {given.target}")
    return 0 if there else 1


if __name__ == "__main__":
    sys.exit(main())
