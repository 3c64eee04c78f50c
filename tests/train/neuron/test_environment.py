"""Compiled graphs are copied whole or not at all; the environment of a Neuron pod; the precompile job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from steps.errors import StorageError
from steps.train.neuron.cache import DONE, copy_missing, count_graphs, fetch_graphs, finished_graphs, keep_graphs, main
from steps.train.neuron.planning.environment import neuron_environment
from steps.train.neuron.precompile import precompile_spec
from tests.train.neuron.test_layout import make_spec


def add_graph(cache: Path, name: str, *, finished: bool = True) -> None:
    folder = cache / "neuronxcc-2.21" / f"MODULE_{name}"
    folder.mkdir(parents=True)
    (folder / "model.neff").write_text(name)
    if finished:
        (folder / DONE).touch()


def test_finished_graphs_travel_to_the_node_and_back(tmp_path: Path) -> None:
    shared, local = tmp_path / "shared", tmp_path / "local"
    add_graph(shared, "one")
    add_graph(shared, "begun", finished=False)
    add_graph(local, "two")
    assert copy_missing(shared, local) == 1
    assert copy_missing(local, shared) == 1
    assert (
        finished_graphs(shared)
        == finished_graphs(local)
        == {f"neuronxcc-2.21/MODULE_{name}" for name in ("one", "two")}
    )
    assert (local / "neuronxcc-2.21/MODULE_one/model.neff").read_text() == "one"
    assert copy_missing(shared, local) == copy_missing(local, shared) == 0


def test_an_entry_whose_compiler_was_killed_is_replaced(tmp_path: Path) -> None:
    add_graph(tmp_path / "shared", "one")
    add_graph(tmp_path / "local", "one", finished=False)
    assert copy_missing(tmp_path / "shared", tmp_path / "local") == 1
    assert len(finished_graphs(tmp_path / "local")) == 1
    assert [path.name for path in (tmp_path / "local" / "neuronxcc-2.21").iterdir()] == ["MODULE_one"]


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert copy_missing(tmp_path / "none", tmp_path / "local") == 0


def test_a_folder_that_cannot_be_written_is_storages_failure(tmp_path: Path) -> None:
    add_graph(tmp_path / "shared", "one")
    (tmp_path / "local").write_text("a file")
    with pytest.raises(StorageError, match="cannot copy"):
        copy_missing(tmp_path / "shared", tmp_path / "local")


def test_a_remembered_failure_does_not_count_and_does_not_travel(tmp_path: Path) -> None:
    add_graph(tmp_path / "local", "failed")
    (tmp_path / "local/neuronxcc-2.21/MODULE_failed/model.neff").unlink()
    assert count_graphs(str(tmp_path / "local")) == 0
    assert copy_missing(tmp_path / "local", tmp_path / "shared") == 0


def test_only_a_shared_folder_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_COMPILE_CACHE_URL", str(tmp_path / "local"))
    add_graph(tmp_path / "shared", "one")
    add_graph(tmp_path / "local", "two")
    assert (fetch_graphs(""), fetch_graphs("s3://bucket/graphs"), keep_graphs("s3://bucket/graphs")) == (0, 0, 0)
    assert (fetch_graphs(str(tmp_path / "shared")), keep_graphs(str(tmp_path / "shared"))) == (1, 1)
    monkeypatch.setenv("NEURON_COMPILE_CACHE_URL", "s3://bucket/graphs")
    assert keep_graphs(str(tmp_path / "another")) == 0


def test_the_precompile_job_has_the_same_shapes_in_its_own_directory() -> None:
    spec = make_spec(tensor_parallel=8, gradient_checkpointing=True)
    found = precompile_spec(spec, world=8)
    assert (found.steps, found.graphs_only) == (3, True)
    assert found.directory.startswith("/d-precompile-")
    assert found.identity != spec.identity
    same = ("sequence_length", "tensor_parallel", "training")
    assert all(getattr(found, name) == getattr(spec, name) for name in same)


def test_the_precompile_job_is_judged_by_what_it_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "local"), str(tmp_path / "shared")]
    assert main(arguments) == 1
    add_graph(tmp_path / "local", "one")
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"1 graphs copied, 1 in {tmp_path / 'shared'}"


def test_the_environment_of_two_nodes() -> None:
    one, two = neuron_environment(nodes=1), neuron_environment(nodes=2, compile_cache="s3://bucket/cache")
    assert two["NEURON_COMPILE_CACHE_URL"] == "s3://bucket/cache"
    assert set(two) - set(one) == {"FI_PROVIDER", "FI_EFA_USE_DEVICE_RDMA", "FI_EFA_FORK_SAFE"}
    assert "--cache_dir" not in one["NEURON_CC_FLAGS"]


def test_the_image_carries_the_same_environment() -> None:
    image = (Path(__file__).parents[3] / "containers" / "neuron.Dockerfile").read_text()
    found = dict(re.findall(r'^(?:ENV| ) +([A-Z_0-9]+)="?([^"\n\\]*?)"?(?: \\)?$', image, flags=re.MULTILINE))
    own = {"PATH": "/opt/lora/bin:${PATH}", "METAFLOW_SKIP_INSTALL_DEPENDENCIES": "1"}
    for_workers_only = {"HF_HUB_OFFLINE"}  # the same image serves the step that fetches the model
    expected = {name: value for name, value in neuron_environment(nodes=2).items() if name not in for_workers_only}
    assert found == expected | own
