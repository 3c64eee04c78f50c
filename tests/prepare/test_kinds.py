"""Kinds of data sets as other programs export them: read as they are meant, or refused with what to do. No model is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from steps.errors import ConfigError, DataError
from steps.prepare import look as looking
from steps.prepare.chat.conversations import Conversation, of_turns, to_conversation
from steps.prepare.chat.forms import find_layout
from steps.prepare.chat.messages import Skip
from steps.prepare.look import look_at_files
from steps.prepare.read.formats import read_rows
from steps.prepare.read.sources import data_files
from steps.settings.catalog import DatasetPreset
from tests.prepare.prepare_data import write_lines

S, U, A = "system", "user", "assistant"
ASKED, SAID = {"role": U, "content": "q"}, {"role": A, "content": "a"}
TURNS = [ASKED, SAID]
FUNCTION = {"name": "w", "parameters": {"type": "object"}}

READ: dict[str, tuple[dict[str, Any], Conversation]] = {
    "FLAN": ({"inputs": "q", "targets": "a"}, of_turns((U, "q"), (A, "a"))),
    "a target": ({"input": "q", "target": "a"}, of_turns((U, "q"), (A, "a"))),
    "a query": ({"query": "q", "response": "a"}, of_turns((U, "q"), (A, "a"))),
    "a problem": ({"problem": "q", "solution": "a", "answer": "1"}, of_turns((U, "q"), (A, "a"))),
    "user and assistant": ({"user": "q", "assistant": "a"}, of_turns((U, "q"), (A, "a"))),
    "OpenOrca": (
        {"system_prompt": "s", "question": "q", "response": "a"},
        of_turns((S, "s"), (U, "q"), (A, "a")),
    ),
    "one conversation": ({"conversation": TURNS}, of_turns((U, "q"), (A, "a"))),
    "Cohere": (
        {"messages": [{"role": "User", "content": "q"}, {"role": "Chatbot", "content": "a"}]},
        of_turns((U, "q"), (A, "a")),
    ),
    "a dialogue": ({"Dialog": TURNS}, of_turns((U, "q"), (A, "a"))),
    "Vertex AI": (
        {
            "systemInstruction": {"role": S, "parts": [{"text": "s"}]},
            "contents": [{"role": U, "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
        },
        of_turns((S, "s"), (U, "q"), (A, "a")),
    ),
    "Bedrock": (
        {
            "system": [{"text": "s"}],
            "messages": [{"role": m["role"], "content": [{"text": m["content"]}]} for m in TURNS],
        },
        of_turns((S, "s"), (U, "q"), (A, "a")),
    ),
    "KTO, wanted": ({"prompt": "q", "completion": "a", "label": True}, of_turns((U, "q"), (A, "a"))),
    "no picture": ({"image": None, "images": [], "messages": TURNS}, of_turns((U, "q"), (A, "a"))),
    "a label beside a question": ({"question": "q", "answer": "a", "label": False}, of_turns((U, "q"), (A, "a"))),
}


@pytest.mark.parametrize(("row", "expected"), READ.values(), ids=READ)
def test_rows_of_other_programs_are_read(row: dict[str, Any], expected: Conversation) -> None:
    assert to_conversation(row, find_layout(row)) == expected


@pytest.mark.parametrize("prompt", ["q", [ASKED]], ids=["text", "messages"])
def test_a_chosen_conversation_repeats_no_question(prompt: Any) -> None:
    row = {"prompt": prompt, "chosen": TURNS, "rejected": TURNS}
    layout = find_layout(row, columns={"prompt": "prompt", "completion": "chosen"})
    assert to_conversation(row, layout) == of_turns((U, "q"), (A, "a"))


def test_functions_are_tools() -> None:
    row = {"functions": [FUNCTION], "messages": TURNS}
    found = to_conversation(row, find_layout(row))
    assert isinstance(found, Conversation)
    assert found.tools == ({"type": "function", "function": FUNCTION},)


SKIPPED: dict[str, tuple[dict[str, Any], str]] = {
    "KTO, unwanted": ({"prompt": "q", "completion": "a", "label": False}, "a label of false"),
    "KTO in a table": ({"prompt": "q", "response": "a", "label": "False"}, "a label of false"),
    "LLaMA-Factory's KTO": ({"messages": TURNS, "kto_tag": False}, "a kto_tag of false"),
    "a picture": ({"image": "a.png", "conversations": TURNS}, "in its column image"),
    "pictures": ({"images": [{"bytes": b"x"}], "messages": TURNS}, "in its column images"),
    "the hub's picture": ({"image": {"bytes": b"x", "path": None}, "messages": TURNS}, "in its column image"),
    "Python's way to write lists": ({"messages": str(TURNS)}, "json.dumps"),
}


@pytest.mark.parametrize(("row", "words"), SKIPPED.values(), ids=SKIPPED)
def test_rows_that_would_teach_something_else_are_left_out(row: dict[str, Any], words: str) -> None:
    found = to_conversation(row, find_layout(row))
    assert isinstance(found, Skip)
    assert words in found.reason


REFUSED: dict[str, tuple[list[str], str]] = {
    "multiple choice": (["question", "choices", "answer"], r"column choices holds the answers to choose from"),
    "options": (["question", "Options", "answer"], r"column Options .*--columns question=question"),
    "single messages": (["message_id", "parent_id", "role", "text"], r"text=text to learn it as it stands"),
    "code": (["text", "code", "test_list"], r"found code, test_list, text"),
    "a summary": (["text", "summary"], r"found summary, text"),
    "one column": (["content"], r"--columns text=content"),
    "preferences": (["question", "chosen", "rejected"], r"--columns prompt=question,completion=chosen"),
    "preferences alone": (["chosen", "rejected"], r"--columns messages=chosen"),
    "OpenAI's preferences": (["input", "preferred_output", "non_preferred_output"], r"completion=preferred_output"),
}


@pytest.mark.parametrize(("columns", "words"), REFUSED.values(), ids=REFUSED)
def test_columns_that_mean_something_else_are_refused_with_the_remedy(columns: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        find_layout(columns)


def test_what_is_named_is_taken_although_a_companion_stands_beside_it() -> None:
    assert find_layout(["text", "role"], columns={"text": "text"}).shape == "text"
    named = {"question": "question", "answer": "answer"}
    assert find_layout(["question", "choices", "answer"], columns=named).shape == "question_answer"


FILES: dict[str, tuple[str, bytes, str]] = {
    "a text": ("a.txt", b"x", r"jq -cR '\{text: \.\}' a\.txt > a\.txt\.jsonl"),
    "bzip2": ("a.jsonl.bz2", b"x", r"bunzip2 -k a\.jsonl\.bz2"),
    "xz": ("a.jsonl.xz", b"x", "xz -dk"),
    "a zip file": ("a.zip", b"x", "unzip"),
    "an archive": ("a.tar.gz", b"x", "tar -xf"),
    "a workbook": ("a.xlsx", b"x", "as CSV UTF-8"),
    "a database": ("a.sql", b"x", "export the rows as JSONL"),
    "no suffix": ("data", b"x", "name it after what it holds"),
    "Git LFS": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "Git LFS, a table": ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a web page": ("a.jsonl", b"<!DOCTYPE html><html>", "expected jsonl, found a web page"),
    "a comma behind each line": ("a.jsonl", b'{"question": "q", "answer": "a"},\n' * 2, "a.jsonl:1.*comma behind"),
    "Arrow that is none": ("a.arrow", b"ARROW1__", "not a readable Arrow file"),
    "only pictures": ("a.jsonl", b'{"image": "a.png", "messages": [1]}\n' * 2, "no usable conversation.*image"),
    "only questions": ("a.jsonl", b'{"question": "q", "answer": null}\n' * 99, r"no answer \(.*a\.jsonl:1\)"),
}


@pytest.mark.parametrize(("name", "content", "words"), FILES.values(), ids=FILES)
def test_files_of_other_kinds_are_refused_before_a_model_is_fetched(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        look_at_files(DatasetPreset(name="mine", path=str(tmp_path / name)))


def test_the_look_goes_on_until_a_row_is_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": "q", "answer": ""}] * 200
    dataset = DatasetPreset(name="mine", path=str(tmp_path / "a.jsonl"))
    write_lines(tmp_path / "a.jsonl", [*rows, {"question": "q", "answer": "a"}])
    look_at_files(dataset)
    write_lines(tmp_path / "a.jsonl", rows)
    monkeypatch.setattr(looking, "MOST_ROWS", 100)  # what was not looked at is left to prepare
    look_at_files(dataset)


def test_the_look_stops_in_the_middle_of_utf_16_without_a_complaint(tmp_path: Path) -> None:
    rows = json.dumps({"question": "q", "answer": "a"}) + "\n"
    (tmp_path / "a.jsonl").write_bytes((rows * 999).encode("utf-16"))
    look_at_files(DatasetPreset(name="mine", path=str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("is_indexed", [False, True], ids=["save_to_disk", "Feather"])
def test_arrow_is_read(tmp_path: Path, is_indexed: bool) -> None:
    rows = [{"question": f"q{n}", "answer": n} for n in range(1000)]
    table = pa.Table.from_pylist(rows)
    open_writer = pa.ipc.new_file if is_indexed else pa.ipc.new_stream
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, open_writer(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=600)
    found = list(read_rows(tmp_path / "a.arrow"))
    assert [row.values for row in found] == rows
    assert found[-1].line == 1000
    assert 0 < found[0].done <= found[-1].done <= (tmp_path / "a.arrow").stat().st_size


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"links to files that are not there \(b\.jsonl\)"):
        data_files(tmp_path)
