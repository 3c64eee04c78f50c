"""The jobs around a training on Trainium, as real PyTorchJobs: the one that compiles its graphs, and the one for inference.

Supervisor, operator, pods, the training that collects (on the CPU, by the torch backend), caches and records are real. What no
such node has is played or missing: a script plays `neuron_parallel_compile`, and there is no compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from steps.protocol.rundir import read_json
from steps.train.neuron.cache import finished_graphs
from tests.e2e.faults.conftest import MakeTrial
from tests.e2e.faults.fault_harness import Trial, eventually
from tests.e2e.faults.test_training import PATIENT, TINY

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]

TOOL = f"""#!{sys.executable}
import os, subprocess, sys
from pathlib import Path
cache = Path(os.environ["NEURON_COMPILE_CACHE_URL"]) / "neuronxcc-2.21"
if sys.argv[1:] == ["--command", "compile"]:
    for graph in cache.glob("*/model.hlo_module.pb"):
        (graph.parent / "model.neff").touch()
        (graph.parent / "model.done").touch()
    sys.exit(0)
assert sys.argv[1:3] == ["--command", "collect"]
code = subprocess.run(sys.argv[3:], env=dict(os.environ, NEURON_EXTRACT_GRAPHS_ONLY="1")).returncode
for name in ("of-all", "of-node-" + os.environ["NODE_RANK"]):
    (cache / f"MODULE_{{name}}").mkdir(parents=True)
    (cache / f"MODULE_{{name}}" / "model.hlo_module.pb").touch()
sys.exit(code)
"""


def around(trial: MakeTrial, name: str, what: str, *, tool: str = "") -> Trial:
    """The job before (`precompile`) or after (`compile`) a small training; `tool` is put on its pods' PATH."""
    made = trial(name)
    tools = made.folder / "tools"
    tools.mkdir(parents=True)
    if tool:
        (tools / "neuron_parallel_compile").write_text(tool)
        (tools / "neuron_parallel_compile").chmod(0o755)
    environment = {"PATH": f"{tools}:{sys.prefix}/bin:/usr/bin:/bin", "NEURON_COMPILE_CACHE_URL": "/tmp/graphs"}
    made.settings = {
        **PATIENT,
        "cluster": {**PATIENT["cluster"], "environment": environment},
        "launcher": {"compile_cache": str(made.folder / "graphs")},
    }
    made.training, made.more = dict(TINY), {"around": what}
    return made


def ended(training: Trial) -> dict[str, Any]:
    """How its supervisor ended; nothing of it is left."""
    last = training.supervisors[-1].wait()
    eventually(f"nothing of {training.name} is left", lambda: not training.left(), limit_s=150)
    return last


def test_graphs_are_compiled_by_a_job_of_the_same_nodes(trial: MakeTrial) -> None:
    training = around(trial, "precompile", "precompile", tool=TOOL)
    training.start()
    told = ended(training)
    assert "error" not in told, training.supervisors[-1].said()
    record = read_json(Path(told["adapter"]) / "precompile.json")
    assert record["before"] == 0 < record["after"] <= 3
    names = {Path(name).name for name in finished_graphs(Path(record["cache"]))}
    assert names == {"MODULE_of-all", "MODULE_of-node-0", "MODULE_of-node-1"}
    assert {event.step for event in training.events(1) if event.kind == "step"} == {1, 2, 3}
    assert not list(training.directory.path.glob("checkpoints/*"))


def test_without_the_tool_it_stops_at_once_and_says_what_to_do(trial: MakeTrial) -> None:
    training = around(trial, "no-tool", "precompile")
    training.start()
    told = ended(training)
    assert told["error"] == "JobPermanentError"
    assert (
        "needs neuron_parallel_compile, which is not on this machine's PATH: use the neuron image, or false"
        in told["message"]
    )
    assert len(training.history()) == 1


def test_the_compile_job_says_that_it_was_skipped_and_which_command_would_do_it(trial: MakeTrial) -> None:
    training = around(trial, "compile", "compile")
    training.start()
    told = ended(training)
    assert "error" not in told, training.supervisors[-1].said()
    record = read_json(Path(told["adapter"]) / "compile.json")
    assert "not installed here: use the neuron image" in record["skipped"]
    assert record["command"].startswith("optimum-cli export neuron --model ")
