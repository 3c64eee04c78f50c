"""Looking at checkpoints takes time in proportion to their number, not more. `bench/checkpoints.py` measures further out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.checkpoints import IDENTITY, WRITER, cpu_s, growth, make_checkpoints, make_files
from steps.protocol.checkpoints import choose, damage, prune

pytestmark = pytest.mark.slow

LINEAR = 3.0
"""Time per item at ten (or sixteen) times the number; a search within a search would give 10 (or 16), noise less than 2."""


@pytest.mark.parametrize("identity", [IDENTITY, "other"], ids=["the-newest-is-whole", "none-is-usable"])
def test_choosing_takes_time_in_proportion_to_the_checkpoints(tmp_path: Path, identity: str) -> None:
    folders = {count: make_checkpoints(tmp_path / str(count), count) for count in (10, 100, 1000)}
    taken = {count: cpu_s(lambda at=folder: choose(at, identity=identity), 3) for count, folder in folders.items()}
    assert growth(taken) < LINEAR, taken
    found = choose(folders[1000], identity=identity)
    assert (found.checkpoint.step if found.checkpoint else None) == (1000 if identity == IDENTITY else None)
    assert len(found.rejected) == (0 if identity == IDENTITY else 1000)


def test_looking_for_damage_takes_time_in_proportion_to_the_files(tmp_path: Path) -> None:
    saved = {count: make_files(tmp_path / str(count), count) for count in (1, 64, 1024)}
    taken = {count: cpu_s(lambda of=checkpoint: damage(of), 3) for count, checkpoint in saved.items()}
    assert growth(taken) < LINEAR, taken
    assert [damage(checkpoint) for checkpoint in saved.values()] == [None, None, None]


def test_pruning_where_there_is_nothing_to_delete_takes_time_in_proportion_to_the_checkpoints(tmp_path: Path) -> None:
    folders = {count: make_checkpoints(tmp_path / str(count), count) for count in (10, 100, 1000)}
    taken = {
        count: cpu_s(lambda at=folder: prune(at, keep=1000, writer=WRITER), 3) for count, folder in folders.items()
    }
    assert growth(taken) < LINEAR, taken
