"""Several data sets prepared as one: how many samples of each are used, which are held out, and what is refused."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from steps.errors import ConfigError, DataError
from steps.prepare.look import look_at_files
from steps.prepare.stage import prepare
from steps.protocol.prepared import PreparedRows
from steps.protocol.records import BaseModel, PreparedData
from steps.protocol.rundir import RunDir
from tests.prepare.prepare_data import PlanMaker, write_lines

A, B = "a.jsonl", "b.jsonl"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`a.jsonl` with 100 questions, `b.jsonl` with 60 of another shape."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / A, [{"question": f"What is a{n}?", "answer": f"a{n} #### {n}"} for n in range(100)])
    write_lines(tmp_path / B, [{"instruction": f"Say b{n}.", "output": f"b{n}"} for n in range(60)])
    return tmp_path


@pytest.fixture
def mixed(base: BaseModel, run: RunDir, make_plan: PlanMaker, here: Path) -> Any:
    return lambda dataset, **options: prepare(make_plan(dataset, **options), base, run, cache=here)


def trained_on(record: PreparedData, base: BaseModel) -> Counter[str]:
    """The first letter of each training answer → how many."""
    decoder, rows = Tokenizer.from_file(f"{base.path}/tokenizer.json"), PreparedRows.open(Path(record.path)).rows
    found: Counter[str] = Counter()
    for index in range(len(rows)):
        row = rows.row(index)
        ends = [0, *row.lengths.cumsum().tolist()]
        for first, end in pairwise(ends):
            answer = [token for token in row.labels[first:end].tolist() if token >= 0]
            found[decoder.decode(answer)[0]] += 1
    return found


def test_each_source_gives_its_weights_share_of_the_training_samples(mixed: Any, base: BaseModel) -> None:
    record = mixed(f"{A}:0.75,{B}:0.25")
    there = {"a": 80, "b": 48}  # a fifth of so few is held out
    assert [part["validation_samples"] for part in record.sources] == [100 - there["a"], 60 - there["b"]]
    assert trained_on(record, base) == {"a": 80, "b": 26}
    assert [(part["name"], part["train_samples"], part["weight"]) for part in record.sources] == [
        (A, 80, 0.75),
        (B, 26, 0.25),
    ]
    assert [part["score"] for part in record.sources] == ["last_number", "rouge_l"]
    assert "22 training samples of b.jsonl not used, for the weights" in record.notes
    assert (record.source, len(record.files)) == (f"0.75 × {A} + 0.25 × {B}", 2)


def test_without_weights_all_samples_are_used(mixed: Any, base: BaseModel) -> None:
    assert trained_on(mixed(f"{A},{B}"), base) == {"a": 80, "b": 48}


def test_held_out_samples_take_turns_and_say_where_they_are_from(mixed: Any) -> None:
    held_out = list(PreparedRows.open(Path(mixed(f"{A}:3,{B}:1").path)).held_out())
    assert [sample.source for sample in held_out[:5]] == [A, B, A, A, A]
    assert {sample.reference[0] for sample in held_out if sample.source == B} == {"b"}


def test_the_same_mixture_gives_the_same_rows_and_another_seed_others(mixed: Any, here: Path) -> None:
    first, second = mixed(f"{A}:1,{B}:1"), mixed(f"{A}:1,{B}:1", seed=7)
    (Path(first.path) / "order.npy").unlink()
    again = mixed(f"{A}:1,{B}:1")
    assert again.digest == first.digest != second.digest
    assert len({mixed(given).identity for given in (f"{A}:1,{B}:1", f"{A}:2,{B}:2", f"{A}:1,{B}:2", A)}) == 3


def test_a_cap_of_one_source_and_max_rows_over_all_draw_rows(mixed: Any) -> None:
    capped = mixed(f'[{{"dataset": "{A}", "max_rows": 10}}, {{"dataset": "{B}"}}]')
    assert [part["train_samples"] + part["validation_samples"] for part in capped.sources] == [10, 60]
    over_all = mixed(f"{A}:3,{B}:1", max_rows=40)
    assert [part["train_samples"] + part["validation_samples"] for part in over_all.sources] == [30, 10]


def test_a_question_held_out_in_one_source_is_not_trained_on_in_another(mixed: Any, here: Path) -> None:
    write_lines(here / B, [{"question": f"What is a{n}?", "answer": f"b{n}"} for n in range(100)])
    record = mixed(f"{A},{B}")
    assert sum(part["train_samples"] for part in record.sources) == 160  # both hold out the same fifth of the questions


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"other": "x"}], "b.jsonl"),
        ([{"instruction": "", "output": ""}], "b.jsonl: no usable conversation"),
        ([{"instruction": "one", "output": "row"}], "b.jsonl: 1 distinct sample found"),
        (
            [{"question": f"What is a{n}?", "answer": f"a{n} #### {n}"} for n in range(50)],
            "b.jsonl: 0 distinct samples",
        ),
    ],
    ids=["other columns", "nothing usable", "one row", "all of it is in the other source"],
)
def test_a_source_that_gives_nothing_is_named(mixed: Any, here: Path, rows: list[dict[str, Any]], words: str) -> None:
    write_lines(here / B, rows)
    with pytest.raises(DataError) as caught:
        mixed(f"{A}:1,{B}:1")
    assert words in str(caught.value)


def test_a_source_without_rows_and_one_that_is_a_copy_are_named(mixed: Any, make_plan: PlanMaker, here: Path) -> None:
    (here / B).write_text("\n")
    with pytest.raises(DataError, match=r"b\.jsonl"):
        mixed(f"{A}:1,{B}:1")
    with pytest.raises(ConfigError, match=r"--dataset: .*b\.jsonl"):
        look_at_files(make_plan(f"{A}:1,{B}:1").dataset)
    (here / B).write_bytes((here / A).read_bytes())
    with pytest.raises(DataError, match=r"a\.jsonl and b\.jsonl hold the same data"):
        mixed(f"{A}:1,{B}:1")
