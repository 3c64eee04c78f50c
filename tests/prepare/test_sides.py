"""What is held out: by a column `split`, by the hub's own splits, by questions; and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError
from steps.prepare.chat.conversations import of_turns
from steps.prepare.read.sources import open_source
from steps.prepare.split import keys_of
from steps.settings.catalog import DatasetPreset
from tests.prepare.prepare_data import questions, write_lines
from tests.prepare.test_public_reports import Maker, decoder, make, texts, turn

__all__ = ["decoder", "make"]


def with_splits(*splits: Any, column: str = "split") -> list[dict[str, Any]]:
    return [{"question": f"q{n}", "answer": "x", column: split} for n, split in enumerate(splits)]


@pytest.mark.parametrize("column", ["split", "Split"])
def test_a_column_split_is_obeyed(make: Maker, tmp_path: Path, column: str) -> None:
    rows = with_splits(*["Train"] * 5, "test", "validation", "dev", column=column)
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert sorted(texts(record, validation=False)) == [turn(f"q{n}", "x") for n in range(5)]
    assert record.validation_samples == 3
    assert record.notes == [f"held out, never trained on: 3 rows whose {column} is dev, test, validation"]


@pytest.mark.parametrize("splits", [["train"] * 6, ["a", "b"] * 3, ["test"] * 6], ids=["train", "other words", "test"])
def test_a_column_split_that_does_not_tell_two_sides_is_named_as_not_used(
    make: Maker, tmp_path: Path, splits: list[str]
) -> None:
    record = make(write_lines(tmp_path / "a.jsonl", with_splits(*splits)))
    assert (record.train_samples, record.validation_samples) == (5, 1)
    assert record.notes == ["columns that are not used: split"]


@pytest.mark.parametrize("strange", ["unused", None, 3])
def test_a_test_row_beside_rows_of_no_side_is_refused(make: Maker, tmp_path: Path, strange: Any) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:3: its split is {strange!r}, where other rows say test"):
        make(write_lines(tmp_path / "a.jsonl", with_splits("train", "test", strange)))


def test_files_that_name_their_side_win_over_the_column(make: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "train.jsonl", with_splits("train", "test"))
    write_lines(folder / "test.jsonl", [{"question": "t", "answer": "x", "split": "train"}])
    record = make(folder)
    assert (record.train_samples, record.validation_samples) == (2, 1)
    assert record.notes == ["held out, never trained on: test.jsonl", "columns that are not used: split"]


def test_a_column_that_is_the_question_is_no_side(make: Maker, tmp_path: Path) -> None:
    rows = [{"split": word, "answer": "x"} for word in ("train", "test", "dev")]
    record = make(write_lines(tmp_path / "a.jsonl", rows), preset={"columns": {"question": "split"}})
    assert sorted(texts(record)) == sorted(turn(word, "x") for word in ("train", "test", "dev"))


def a_hub(monkeypatch: pytest.MonkeyPatch, **splits: int) -> None:
    """A stand-in: a hub with one data set of so many rows in each split."""
    import datasets
    from huggingface_hub import HfApi

    rows = {
        split: datasets.Dataset.from_list([{"question": f"{split} {n}?", "answer": "x"} for n in range(count)])
        for split, count in splits.items()
    }

    def load(hub: str, config: str | None, *, split: str | None, **_: object) -> Any:
        return rows[split] if split else datasets.DatasetDict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)


HUB = DatasetPreset(hub="some/set")


def test_the_hubs_own_validation_and_test_splits_are_held_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_hub(monkeypatch, train=5, validation=2, test=1, unsupervised=3)
    source = open_source(HUB, tmp_path)
    rows = list(source.rows())
    assert [(row.values["question"], row.side) for row in rows[4:7]] == [
        ("train 4?", "train"),
        ("validation 0?", "validation"),
        ("validation 1?", "validation"),
    ]
    assert (len(rows), rows[-1].done, source.size) == (8, 8, 8)
    assert rows[-1].place == "hub:some/set@main/test:1"
    assert source.notes == (
        "held out, never trained on: validation, test",
        "splits that are not read: unsupervised",
    )


def test_a_hub_data_set_with_one_split_is_divided_by_its_questions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a_hub(monkeypatch, train=5)
    source = open_source(HUB, tmp_path)
    assert ({row.side for row in source.rows()}, source.notes) == ({""}, ())


def test_the_split_that_a_preset_names_is_all_that_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_hub(monkeypatch, train=5, train_sft=3, test_sft=2)
    source = open_source(HUB.model_copy(update={"split": "train_sft"}), tmp_path)
    assert [(row.values["question"], row.side) for row in source.rows()] == [(f"train_sft {n}?", "") for n in range(3)]


def test_a_hub_data_set_without_train_names_its_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_hub(monkeypatch, train_sft=3, test_sft=2)
    with pytest.raises(
        DataError, match=r"some/set has no split named train, but train_sft, test_sft: name one in a preset"
    ):
        open_source(HUB, tmp_path)


def test_a_question_is_the_same_whatever_white_space_stands_in_it() -> None:
    asked = ["a b\nc", " a  b c", "a\tb c\n"]
    keys = [keys_of(of_turns(("user", text), ("assistant", "x"))) for text in asked]
    assert len({prompt for _, prompt in keys}) == 1
    assert len({content for content, _ in keys}) == 3
    assert keys_of(of_turns(("user", "ab c"), ("assistant", "x")))[1] != keys[0][1]


def test_many_answers_to_one_question_are_refused(make: Maker, tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": f"{n}"} for n in range(10)]
    file = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"all 10 distinct samples have one question.*--columns text=COLUMN"):
        make(file)
    assert make(file, preset={"columns": {"text": "answer"}}).samples == 10


def test_held_out_rows_that_are_too_long_are_counted_and_named(
    make: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "train.jsonl", questions(4))
    long = [("word " * 300, "x"), ("a", "word " * 300), ("b", "y")]
    write_lines(folder / "test.jsonl", [{"question": question, "answer": answer} for question, answer in long])
    record = make(folder)
    assert (record.validation_samples, record.truncated_samples, record.too_long) == (2, 1, 1)
    assert record.notes[1:] == [
        "1 held-out sample longer than sequence_length=256: the loss is measured up to there",
        "1 row to hold out left out: no token of an answer within the sequence length",
    ]
    assert "test.jsonl:1" in caplog.text
    assert json.loads((Path(record.path) / "manifest.json").read_text())["skipped"]
