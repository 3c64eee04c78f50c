"""Claims: who may write, taken in order, in a race, and never by a straggler."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.errors import CheckpointError
from steps.protocol.writer import Writer, register_writer


def test_the_writers_of_an_attempt_count_up_and_a_straggler_is_refused(tmp_path: Path) -> None:
    writers = tmp_path / "train-abc" / "writers"
    assert register_writer(writers, 1) == Writer(1, 1)
    assert register_writer(writers, 1) == Writer(1, 2)
    assert register_writer(writers, 3) == Writer(3, 1)
    (writers / "notes.txt").touch()
    with pytest.raises(
        CheckpointError, match=r"attempt 1 of .*train-abc starts after attempt 3 has begun: it may not write"
    ):
        register_writer(writers, 1)
    assert sorted(path.name for path in writers.iterdir()) == ["001-01", "001-02", "003-01", "notes.txt"]


def test_a_name_taken_in_the_same_moment_is_left_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir
    others = iter([tmp_path / "001-01"])

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        other = next(others, None) if path.name == "001-01" else None
        if other:
            make(other)
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert register_writer(tmp_path, 1) == Writer(1, 2)


@given(st.builds(Writer, st.integers(0, 10**6), st.integers(0, 10**6)))
def test_a_writer_is_read_back_as_written(writer: Writer) -> None:
    assert Writer.parse(str(writer)) == writer


@given(st.text(max_size=8) | st.sampled_from(["", "1", "1-", "-1", "1-1-1", "²-1", "1-1\n", " 1-1"]))
def test_other_text_is_no_writer(text: str) -> None:
    writer = Writer.parse(text)
    assert writer is None or text.isascii()


def take(writers: Path, barrier: Any, answers: Any, count: int) -> None:
    barrier.wait(60)
    answers.put([str(register_writer(writers, 1)) for _ in range(count)])


@pytest.mark.parametrize("writing", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_names_taken_by_several_processes_at_once_are_all_distinct(tmp_path: Path, writing: int) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(writing), context.Queue()
    writers = tmp_path / "writers"
    processes = [context.Process(target=take, args=(writers, barrier, answers, 160 // writing)) for _ in range(writing)]
    for process in processes:
        process.start()
    names = [writer for _ in processes for writer in answers.get(timeout=90)]
    for process in processes:
        process.join()
    assert len(set(names)) == len(names) == 160
    assert sorted(names) == sorted(path.name for path in writers.iterdir())
