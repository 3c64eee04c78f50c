from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prepare_data import questions

from steps.errors import StorageError
from steps.prepare.conversations import find_layout
from steps.prepare.files import Row
from steps.prepare.samples import Recipe, SampleMaker
from steps.prepare.workers import ALONE_CHUNKS, make_samples


@pytest.fixture
def recipe(tiny_model: Path) -> Recipe:
    layout = find_layout(["question", "answer"])
    return Recipe(tiny_model, layout, system="", sequence_length=64, seed=1, validation_fraction=0.2)


def chunks(count: int) -> Iterator[list[Row]]:
    rows = [Row(dict(values), "f", line, line) for line, values in enumerate(questions(4 * count), start=1)]
    rows[2].values["answer"] = ""
    return (rows[begin : begin + 4] for begin in range(0, len(rows), 4))


@pytest.mark.parametrize("count", [1, ALONE_CHUNKS, ALONE_CHUNKS + 1, 4 * ALONE_CHUNKS])
def test_several_processes_give_what_one_gives_in_the_same_order(recipe: Recipe, count: int) -> None:
    maker = SampleMaker(recipe)
    alone, shared = (list(make_samples(chunks(count), recipe, maker, processes=processes)) for processes in (1, 2))
    assert alone == shared
    assert [done for done, _ in alone] == [4 * (number + 1) for number in range(count)]


def test_a_process_that_dies_is_a_clear_error_and_no_hang(recipe: Recipe, tmp_path: Path) -> None:
    maker = SampleMaker(recipe)
    gone = Recipe(tmp_path / "gone", recipe.layout, "", 64, 1, 0.2)
    with pytest.raises(StorageError, match="was killed"):
        list(make_samples(chunks(4 * ALONE_CHUNKS), gone, maker, processes=2))


def test_a_reader_that_stops_early_leaves_no_process(recipe: Recipe) -> None:
    import psutil

    before = set(psutil.Process().children())
    made = make_samples(chunks(10 * ALONE_CHUNKS), recipe, SampleMaker(recipe), processes=2)
    for _ in range(ALONE_CHUNKS + 2):
        next(made)
    made.close()  # type: ignore[attr-defined]
    assert set(psutil.Process().children()) <= before
