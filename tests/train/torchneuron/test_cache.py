"""TorchNeuron's graphs travel as files: finished ones alone, both ways, by several at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steps.errors import StorageError
from steps.train.torchneuron.cache import VARIABLE, copy_missing, fetch_graphs, graphs, keep_graphs


def add_graph(cache: Path, name: str, text: str = "graph") -> None:
    file = cache / name[:2] / name[2:4] / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_finished_graphs_travel_to_the_node_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, node = tmp_path / "shared", tmp_path / "node"
    monkeypatch.setenv(VARIABLE, str(node))
    add_graph(shared, "aabb01.neff")
    add_graph(shared, "aabb02.neff.tmp")
    add_graph(node, "ccdd03.neff")
    assert (fetch_graphs(str(shared)), keep_graphs(str(shared))) == (1, 1)
    assert graphs(shared) == graphs(node) == {Path("aa/bb/aabb01.neff"), Path("cc/dd/ccdd03.neff")}
    assert (node / "aa/bb/aabb01.neff").read_text() == "graph"
    assert (fetch_graphs(str(shared)), keep_graphs(str(shared))) == (0, 0)


def test_without_a_shared_folder_nothing_is_copied_and_one_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "node"))
    add_graph(tmp_path / "node", "aabb01.neff")
    assert (fetch_graphs(""), keep_graphs("")) == (0, 0)
    assert fetch_graphs(str(tmp_path / "none")) == 0


def test_several_nodes_may_hand_on_the_same_graphs_and_leave_nothing_half_written(tmp_path: Path) -> None:
    for number in range(40):
        add_graph(tmp_path / "node", f"{number:04d}.neff", "x" * 10000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: copy_missing(tmp_path / "node", tmp_path / "shared"), range(4)))
    files = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert len(files) == 40
    assert {path.stat().st_size for path in files} == {10000}


def test_a_folder_that_cannot_be_written_is_storages_failure(tmp_path: Path) -> None:
    add_graph(tmp_path / "node", "aabb01.neff")
    (tmp_path / "shared").write_text("a file")
    with pytest.raises(StorageError, match="copying compiled graphs"):
        copy_missing(tmp_path / "node", tmp_path / "shared")
