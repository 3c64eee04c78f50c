"""The look at a data set's first rows, before a model is fetched: what it refuses, and what it leaves to `prepare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steps.errors import ConfigError, DataError
from steps.prepare import look as looking
from steps.prepare.look import look, look_at_files
from steps.settings.catalog import DatasetPreset

PAIR = {"prompt": "1 + 1?", "completion": "2"}
REFUSED: dict[str, tuple[str, str, dict[str, str], str]] = {
    "other columns": ("rows.jsonl", json.dumps({"a": 1, "b": 2}), {}, r"rows\.jsonl:1: its columns fit no known shape"),
    "no such column": ("rows.jsonl", json.dumps(PAIR), {"prompt": "ask"}, r"columns\.prompt: there is no column 'ask'"),
    "an unknown part": ("rows.jsonl", json.dumps(PAIR), {"promt": "prompt"}, r"columns\.promt: unknown part"),
    "broken JSON": ("rows.jsonl", json.dumps(PAIR) + "\n{", {}, r"rows\.jsonl.*2"),
    "empty": ("rows.jsonl", "", {}, "is empty"),
    "no rows": ("rows.csv", "prompt,completion\n", {}, r"rows\.csv"),
    "no data file": ("rows.docx", "x", {}, "expected a file with one of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_at_once(name: str, tmp_path: Path) -> None:
    file, content, columns, said = REFUSED[name]
    (tmp_path / file).write_text(content)
    dataset = DatasetPreset(name="mine", path=str(tmp_path / file), columns=columns)
    with pytest.raises(DataError, match=said):
        look(dataset, tmp_path)
    with pytest.raises(ConfigError, match=f"^--dataset: .*{said}"):
        look_at_files(dataset)


def test_only_the_first_rows_are_looked_at(tmp_path: Path) -> None:
    rows = [json.dumps(PAIR)] * (looking.ROWS + 1)
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "{"]))
    look_at_files(DatasetPreset(name="mine", path=str(tmp_path / "rows.jsonl")))


def test_each_file_of_a_folder_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text(json.dumps(PAIR))
    (tmp_path / "2.jsonl").write_text(json.dumps({"a": 1}))
    with pytest.raises(ConfigError, match=r"2\.jsonl:1: its columns"):
        look_at_files(DatasetPreset(name="mine", path=str(tmp_path)))


def test_a_generator_of_ours_and_what_lies_elsewhere_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look(DatasetPreset(name="orders", builtin="orders"), tmp_path)
    monkeypatch.setattr(looking, "open_source", lambda *_: pytest.fail("the hub was asked"))
    look_at_files(DatasetPreset(name="hub", hub="someone/data"))
