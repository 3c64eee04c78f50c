"""The precompile job: a few steps collect the graphs, all are compiled at once, and the shared cache must have grown.

    python -m steps.train.neuron.precompile torchrun … -m steps.train.worker <directory>/spec.json --attempt 1

Run in torchrun's place on every node (`Job.wrapper`). Under `neuron_parallel_compile` the device is replaced: every result is a
zero, so the spec says `graphs_only` and the worker saves and exports nothing. Graphs are collected and compiled by two commands:
the one command that does both finds its graphs by reading the training's output, but our ranks write theirs to files of their
own, so it would compile nothing and call that a success.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steps.errors import ConfigError, LoraFlowError, ModelError, Problem
from steps.protocol.events import EventWriter
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import record_of, write_record
from steps.protocol.records import digest_file, identity_of
from steps.protocol.rundir import write_json
from steps.train.neuron.cache import VARIABLE, count_graphs, fetch_graphs, keep_graphs, local_cache
from steps.train.spec import TrainSpec, read_spec

TOOL = "neuron_parallel_compile"
STEPS = 3
"""First, middle and last step, in case their graphs differ (the first makes the optimizer's state, at a rate of 0)."""
RECORD = "precompile.json"


class CollectError(LoraFlowError):
    """The few steps of the training did not come to their end."""


def precompile_spec(spec: TrainSpec, *, world: int) -> TrainSpec:
    """The same graphs in few steps on `world` processes, in a directory of its own.

    Graphs depend on shapes, layout and the fused optimizer step, not on the number of steps. What it computes is zeros. A
    training that goes on with another layout (fewer nodes, another micro batch) has other graphs: the identity holds the layout.
    """
    steps = min(STEPS, spec.steps)
    layout = [world, spec.tensor_parallel, spec.pipeline_parallel, spec.training.model_dump(mode="json")]
    end = f"-precompile-{identity_of(layout)[:8]}"
    changes = {
        "directory": f"{spec.directory}{end}",
        "identity": f"{spec.identity}{end}",
        "steps": steps,
        "checkpoint_every": steps,
        "validation_every": steps,
        "patience": 0,
        "keep": "last",
        "graphs_only": True,
    }
    return spec.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a node's precompilation left in the cache."""

    cache: str
    before: int
    """Finished graphs there when it began."""
    after: int
    seconds: float

    def sentence(self) -> str:
        """For people."""
        return f"{self.after - self.before} graphs compiled in {self.seconds:.0f} s, {self.after} in {self.cache}"


def precompile(command: Sequence[str], cache: str) -> Outcome:
    """Collect with `command`, compile, hand on; `cache` is the spec's, empty for this node's own.

    Raises:
        ConfigError: the tool is not here.
        CollectError: the training failed.
        ModelError: a graph cannot be compiled, or none was collected.
        StorageError: the cache cannot be read or written.
    """
    begun = time.monotonic()
    tool = shutil.which(TOOL)
    if tool is None:
        what = f"needs {TOOL}, which is not on this machine's PATH: use the neuron image, or false"
        raise ConfigError([Problem("launcher.precompile", what)])
    where = cache or os.environ.get(VARIABLE) or str(local_cache())
    before = count_graphs(where)
    fetch_graphs(cache)
    if code := _run([tool, "--command", "collect", *command]):
        raise CollectError(f"the training that collects graphs ended with {code}; its ranks say why")
    if code := _run([tool, "--command", "compile"]):
        what = (
            "the compiler's words are in torchrun.log of this attempt; launcher.precompile: false goes without this job"
        )
        raise ModelError(f"{code} of the collected graphs cannot be compiled: {what}")
    keep_graphs(cache)
    found = Outcome(where, before, count_graphs(where), round(time.monotonic() - begun, 1))
    if not found.after:
        raise ModelError(f"no compiled graph is in {where}: the few steps of the training collected none")
    return found


def _run(command: Sequence[str]) -> int:
    """Its exit code; its deadline is the supervisor's."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


def main(argv: Sequence[str]) -> int:
    """Precompile on this node; node 0 publishes what came of it. Returns the exit code."""
    command = list(argv)
    spec_path, attempt = Path(command[command.index("--attempt") - 1]), int(command[command.index("--attempt") + 1])
    node = int(os.environ.get("NODE_RANK", "0"))
    spec = read_spec(spec_path)
    try:
        outcome = precompile(command, spec.compile_cache)
        print(outcome.sentence(), flush=True)
        if node == 0:
            _publish(spec, attempt, outcome)
    except CollectError as error:  # no record: the ranks have left theirs, or were asked to stop
        print(error, file=sys.stderr, flush=True)
        return FailureClass.UNKNOWN.exit_code
    except LoraFlowError as error:
        print(f"{error.headline}: {error}", file=sys.stderr, flush=True)
        rank = node * _processes_of(command)  # the first of this node: the others' numbers are other nodes'
        record = record_of(error, rank=rank, node=platform.node(), step=0, time_s=time.time())
        write_record(spec.place.attempt(attempt), record)
        return record.exit_code
    return 0


def _processes_of(command: Sequence[str]) -> int:
    """Ranks of each node, as torchrun is told."""
    told = (word.removeprefix("--nproc-per-node=") for word in command if word.startswith("--nproc-per-node="))
    return int(next(told, "1"))


def _publish(spec: TrainSpec, attempt: int, outcome: Outcome) -> None:
    """The result that the supervisor waits for."""
    folder = spec.place.files(attempt).result
    record = {"cache": outcome.cache, "before": outcome.before, "after": outcome.after, "seconds": outcome.seconds}
    write_json(folder / RECORD, record)
    file = folder / RECORD
    files = {RECORD: {"bytes": file.stat().st_size, "sha256": digest_file(file)}}
    events = EventWriter(spec.place.events(attempt), attempt=attempt)
    name = str(folder.relative_to(spec.place.path))
    events.emit("finished", spec.steps, result=name, files=files, result_step=spec.steps, seconds=outcome.seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
