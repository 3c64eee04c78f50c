from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.errors import StorageError
from steps.prepare.chat.forms import find_layout
from steps.prepare.read.files import Row
from steps.prepare.tokenize.samples import Chunk, Made, Recipe, SampleMaker
from steps.prepare.tokenize.workers import ALONE_CHUNKS, make_samples
from tests.prepare.prepare_data import questions

LAYOUT = find_layout(["question", "answer"])


@pytest.fixture
def recipe(tiny_model: Path) -> Recipe:
    return Recipe(tiny_model, system="", sequence_length=64, seed=1, validation_fraction=0.2)


def chunks(count: int) -> Iterator[Chunk]:
    rows = [Row(dict(values), "f", line, line) for line, values in enumerate(questions(4 * count), start=1)]
    rows[2].values["answer"] = ""
    return (Chunk(LAYOUT, rows[begin : begin + 4]) for begin in range(0, len(rows), 4))


@pytest.mark.parametrize("count", [1, ALONE_CHUNKS, ALONE_CHUNKS + 1, 4 * ALONE_CHUNKS])
def test_several_processes_give_what_one_gives_in_the_same_order(recipe: Recipe, count: int) -> None:
    maker = SampleMaker(recipe)
    alone, shared = (list(make_samples(chunks(count), maker, processes=processes)) for processes in (1, 2))
    assert alone == shared
    assert [done for done, _ in alone] == [4 * (number + 1) for number in range(count)]


class DiesAsAChild(SampleMaker):
    """Ends its process, if that is not the one that made it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._home = os.getpid()

    def make(self, chunk: Chunk) -> Made:
        if os.getpid() != self._home:
            os._exit(9)
        return super().make(chunk)


def test_a_process_that_dies_is_a_clear_error_and_no_hang(recipe: Recipe) -> None:
    with pytest.raises(StorageError, match="was killed"):
        list(make_samples(chunks(4 * ALONE_CHUNKS), DiesAsAChild(recipe), processes=2))


def test_a_reader_that_stops_early_leaves_no_process(recipe: Recipe) -> None:
    import psutil

    before = set(psutil.Process().children())
    made = make_samples(chunks(10 * ALONE_CHUNKS), SampleMaker(recipe), processes=2)
    for _ in range(ALONE_CHUNKS + 2):
        next(made)
    made.close()  # type: ignore[attr-defined]
    assert set(psutil.Process().children()) <= before
