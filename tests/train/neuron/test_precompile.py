"""The precompile job, with a tool that plays `neuron_parallel_compile`: what it runs, what it judges, what it leaves."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steps.flow.neuron_jobs import patient, precompile, precompile_job
from steps.job.job import Job
from steps.job.outcome import publish, result_damage
from steps.protocol.events import EventTail
from steps.protocol.failure_record import read_records
from steps.protocol.rundir import TrainDir, read_json
from steps.settings.config import Settings
from steps.train.neuron.cache import finished_graphs
from steps.train.neuron.precompile import main, precompile_spec
from steps.train.spec import TrainSpec
from tests.train.neuron.test_layout import make_spec

TOOL = f"""#!{sys.executable}
import os, subprocess, sys
from pathlib import Path
cache = Path(os.environ["NEURON_COMPILE_CACHE_URL"]) / "neuronxcc-2.21"
command = sys.argv[1:]
assert command[0] == "--command"
if command[1] == "collect":
    environment = dict(os.environ, NEURON_EXTRACT_GRAPHS_ONLY="1")
    sys.exit(1 if subprocess.run(command[2:], env=environment).returncode else 0)
assert command[1:] == ["compile"]
failed = 0
for graph in cache.glob("*/model.hlo_module.pb"):
    (graph.parent / "model.done").touch()
    if graph.read_text() == "good":
        (graph.parent / "model.neff").touch()
    else:
        failed += 1
sys.exit(failed)
"""
TRAINING = """
import os, sys
from pathlib import Path
assert os.environ["NEURON_EXTRACT_GRAPHS_ONLY"] == "1"
for name, text in zip(sys.argv[2::2], sys.argv[3::2]):
    if name == "exit":
        sys.exit(int(text))
    if name.startswith("--") or text.startswith("--"):
        break
    folder = Path(os.environ["NEURON_COMPILE_CACHE_URL"], "neuronxcc-2.21", "MODULE_" + name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.hlo_module.pb").write_text(text)
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainSpec:
    """A precompile job's spec on disk; the tool is on the PATH, this node's cache is a folder of the test."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "neuron_parallel_compile").write_text(TOOL)
    (tools / "neuron_parallel_compile").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("NEURON_COMPILE_CACHE_URL", str(tmp_path / "local"))
    monkeypatch.delenv("NODE_RANK", raising=False)
    made = precompile_spec(
        make_spec(directory=str(tmp_path / "train-x"), compile_cache=str(tmp_path / "shared")), world=1
    )
    made.place.attempt(1).mkdir(parents=True)
    made.place.spec.write_text(json.dumps(made.to_dict()))
    return made


def run(spec: TrainSpec, *graphs: str) -> int:
    """The job, whose training collects `name, good | bad, …`, or ends with `exit, code`."""
    return main([sys.executable, "-c", TRAINING, "-m", *graphs, str(spec.place.spec), "--attempt", "1"])


def finished(spec: TrainSpec) -> list[dict[str, Any]]:
    return [event.data for event in EventTail(spec.place.events(1)).read_new() if event.kind == "finished"]


def test_graphs_are_collected_compiled_and_handed_on(
    spec: TrainSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(spec, "a", "good", "b", "good") == 0
    assert len(finished_graphs(tmp_path / "shared")) == 2
    (told,) = finished(spec)
    assert result_damage(spec.place, told) is None
    record = read_json(publish(spec.place, told) / "precompile.json")
    assert (record["before"], record["after"], record["cache"]) == (0, 2, str(tmp_path / "shared"))
    assert "2 graphs compiled in" in capfd.readouterr().out


def test_a_cache_that_holds_all_already_is_good_too(spec: TrainSpec) -> None:
    assert run(spec, "a", "good") == 0
    assert run(spec, "a", "good") == 0
    assert read_json(spec.place.path / finished(spec)[-1]["result"] / "precompile.json")["before"] == 1


def test_only_the_first_node_publishes(spec: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    assert run(spec, "a", "good") == 0
    assert finished(spec) == []


@pytest.mark.parametrize(
    ("graphs", "words"),
    [
        (("a", "good", "b", "bad"), "1 of the collected graphs cannot be compiled"),
        ((), "no compiled graph is in"),
    ],
    ids=["a graph that cannot be compiled", "none collected"],
)
def test_what_cannot_be_compiled_stops_the_job(graphs: tuple[str, ...], words: str, spec: TrainSpec) -> None:
    assert run(spec, *graphs) == 65
    (record,) = read_records(spec.place.attempt(1))
    assert (record.failure_class, words in record.message) == ("config", True)
    assert finished(spec) == []


def test_a_node_speaks_as_its_first_rank(spec: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    assert run(spec, "--nproc-per-node=32", "--nnodes=2") == 65
    assert [record.rank for record in read_records(spec.place.attempt(1))] == [32]


def test_a_training_that_fails_speaks_for_itself(spec: TrainSpec) -> None:
    assert run(spec, "exit", "71") == 75
    assert read_records(spec.place.attempt(1)) == []
    assert finished(spec) == []


def test_without_the_tool_it_says_where_it_is(spec: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run(spec, "a", "good") == 65
    (record,) = read_records(spec.place.attempt(1))
    assert "needs neuron_parallel_compile, which is not on this machine's PATH" in record.message


def test_the_job_is_the_trainings_with_a_wrapper_and_a_place_of_its_own() -> None:
    spec = make_spec()
    training = Job(
        "steps.train.worker", spec.to_dict(), TrainDir(Path("/d")), "i", 10, processes=32, nodes=2, node_choices=(2, 1)
    )
    job = precompile_job(training)
    assert (job.step, job.wrapper) == ("precompile", "steps.train.neuron.precompile")
    assert re.fullmatch("i-precompile-[0-9a-f]{8}", job.identity)
    assert job.node_choices == ()
    assert (job.processes, job.nodes, job.total_steps) == (32, 2, 3)
    assert job.directory.path == Path(f"/d{job.identity[1:]}")
    assert job.spec["graphs_only"] is True
    assert job.spec_digest != training.spec_digest != replace(training, wrapper="x").spec_digest


@pytest.mark.parametrize(
    "other", [{"nodes": 1}, {"micro_batch": 2}, {"tensor_parallel": 4}, {"gradient_checkpointing": True}], ids=str
)
def test_another_layout_has_graphs_of_its_own(other: dict[str, Any]) -> None:
    def job_of(nodes: int = 2, **changes: Any) -> Job:
        spec = make_spec(**changes)
        directory = TrainDir(Path("/d"))
        return precompile_job(Job("worker", spec.to_dict(), directory, spec.identity, 10, processes=32, nodes=nodes))

    assert job_of().identity == job_of().identity
    assert job_of(**other).identity != job_of().identity
    assert job_of(**other).directory != job_of().directory


def test_what_came_of_it_is_told_in_a_sentence(spec: TrainSpec) -> None:
    class Node:
        """`current.pytorchjob` with one node."""

        def run(self, job: Job, settings: Settings, *, title: str, facts: object) -> SimpleNamespace:
            assert (job.step, settings.deadlines.exit_s) == ("precompile", Settings().deadlines.first_step_s)
            assert run(spec, "a", "good") == 0
            return SimpleNamespace(result_dir=publish(spec.place, finished(spec)[0]))

    training = Job("steps.train.worker", make_spec().to_dict(), TrainDir(Path("/d")), "i", 10)
    told = precompile(Node(), training, Settings(), {})  # type: ignore[arg-type]
    assert re.fullmatch(r"precompiled: 1 graphs compiled in \d+ s, 1 in .*/shared", told)


def test_while_graphs_are_compiled_nobody_is_impatient() -> None:
    settings = Settings()
    found = patient(settings).deadlines
    assert (found.step_gap_s, found.exit_s) == (settings.deadlines.first_step_s,) * 2
    assert found.total_s == settings.deadlines.total_s
