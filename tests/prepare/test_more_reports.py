"""More of what people's data looks like: parts, switches, calls, thoughts, encodings, folders; decoded beside their labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError
from tests.prepare.chat import template_matrix
from tests.prepare.prepare_data import base_at, write_lines, write_tokenizer
from tests.prepare.test_public_reports import TOOLS, Maker, chat, decoder, make, texts, turn

__all__ = ["decoder", "make"]

U, A = "user", "assistant"
PARTS: dict[str, Any] = {
    "the Responses API's types": lambda text: [{"type": "input_text", "text": text}],
    "a part called value": lambda text: [{"type": "value", "value": text}],
    "text with annotations": lambda text: [{"type": "text", "text": {"value": text, "annotations": []}}],
    "parts without a type": lambda text: [{"text": text}],
    "one part and no list": lambda text: {"type": "text", "text": text},
    "a string among parts": lambda text: ["", {"type": "text", "text": text}],
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_text_parts_are_text(make: Maker, tmp_path: Path, part: Any) -> None:
    rows = [chat((U, part(n)), (A, part("x"))) for n in "ab"]
    assert sorted(texts(make(write_lines(tmp_path / "a.jsonl", rows)))) == [turn(n, "x") for n in "ab"]


def test_a_part_of_0_is_an_answer_and_an_empty_list_is_none(make: Maker, tmp_path: Path) -> None:
    rows = [chat((U, n), (A, [{"type": "text", "text": 0}])) for n in "ab"]  # type: ignore[arg-type]
    rows += [chat((U, "c"), (A, []))]  # type: ignore[arg-type]
    rows += [{"question": "d", "answer": []}]
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert sorted(texts(record)) == [turn("a", "0"), turn("b", "0"), turn("d", "[]")]
    assert record.skipped == 1


@pytest.mark.parametrize(
    "off", [{"masked": True}, {"is_masked": 1}, {"trainable": False}, {"loss_mask": 0}, {"train_on_turn": False}]
)
def test_other_names_of_the_switch(make: Maker, tmp_path: Path, off: dict[str, Any]) -> None:
    rows = [chat((U, n), (A, "bad"), (U, "sure?"), (A, "good")) for n in "ab"]
    for row in rows:
        row["messages"][1] |= off
    found = texts(make(write_lines(tmp_path / "a.jsonl", rows)))
    assert all("⟦bad" not in text and "⟦good" in text for text in found)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a mask that may mean either": ({"content": "x", "mask": 1}, "call it weight, 1 or 0"),
    "thoughts that break off": ({"content": "<think>so it is"}, "breaks off within its <think>"),
    "thoughts and no answer": ({"content": "<think>so</think>\n"}, "no answer"),
    "arguments that are not JSON": (
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": '}}]},
        "the arguments of a tool call are not valid JSON",
    ),
}


@pytest.mark.parametrize(("answer", "reason"), BROKEN.values(), ids=BROKEN)
def test_what_would_teach_something_broken_is_named(
    make: Maker, tmp_path: Path, answer: dict[str, Any], reason: str
) -> None:
    rows = [{"messages": [{"role": U, "content": n}, {"role": A, **answer}]} for n in "ab"]
    with pytest.raises(DataError, match=reason):
        make(write_lines(tmp_path / "a.jsonl", rows))


def test_calls_under_other_roles_and_without_arguments(make: Maker, tmp_path: Path) -> None:
    model = base_at(write_tokenizer(tmp_path / "model", template=TOOLS))
    said = [("human", "rain?"), ("tool_call", '{"name": "f", "arguments": ""}'), ("tool_response", "no"), ("gpt", "ok")]
    rows = [
        {"conversations": [{"from": "system", "value": n}, *({"from": role, "value": text} for role, text in said)]}
        for n in "ab"
    ]
    found = texts(make(write_lines(tmp_path / "a.jsonl", rows), model=model))
    for text in found:
        assert "⟦CALL f {}<|im_end|>⟧\n<|im_start|>tool\nno<|im_end|>\n<|im_start|>assistant\n⟦ok<|im_end|>⟧" in text


def test_thoughts_under_any_name_and_of_any_kind(make: Maker, tmp_path: Path) -> None:
    template = (template_matrix.FOLDER / "qwen3.jinja").read_text(encoding="utf-8")
    model = base_at(write_tokenizer(tmp_path / "model", template=template))
    given: list[dict[str, Any]] = [{"thought": "so"}, {"reasoning": ["so", 1]}, {"thinking": "  "}]
    rows = [
        {"messages": [{"role": U, "content": f"q{n}"}, {"role": A, "content": "x", **thoughts}]}
        for n, thoughts in enumerate(given)
    ]
    found = sorted(texts(make(write_lines(tmp_path / "a.jsonl", rows), model=model)))
    for text, thoughts in zip(found, ("so", '["so", 1]', ""), strict=True):
        assert f"⟦<think>\n{thoughts}\n</think>\n\nx<|im_end|>⟧" in text


def test_thoughts_of_earlier_turns_that_a_template_drops_are_counted(make: Maker, tmp_path: Path) -> None:
    template = (template_matrix.FOLDER / "qwen3.jinja").read_text(encoding="utf-8")
    model = base_at(write_tokenizer(tmp_path / "model", template=template))
    rows = [chat((U, n), (A, "<think>one</think>1"), (U, "k"), (A, "<think>two</think>2")) for n in "ab"]
    record = make(write_lines(tmp_path / "a.jsonl", rows), model=model)
    assert record.notes == ["in 2 samples the chat template leaves out the reasoning of earlier answers"]


def test_a_text_that_brings_its_own_begin_and_end_gets_no_second(make: Maker, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model", template=None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"add_bos_token": True, "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    rows = [{"text": "<|endoftext|>one fox<|im_end|>"}, {"text": "two foxes"}]
    found = texts(make(write_lines(tmp_path / "a.jsonl", rows), model=base_at(folder)))
    assert sorted(found) == ["<|endoftext|>⟦one fox<|im_end|>⟧", "<|endoftext|>⟦two foxes<|im_end|>⟧"]


ROWS = [{"question": n, "answer": "xä"} for n in "ab"]
FILES = {
    "UTF-16 CSV without a mark": ("a.csv", "question\tanswer\r\na\txä\r\nb\txä\r\n".encode("utf-16-le")),
    "big-endian JSONL": ("a.jsonl", "\n".join(map(json.dumps, ROWS)).encode("utf-16-be")),
    "a UTF-16 JSON array": ("a.json", json.dumps(ROWS, ensure_ascii=False, indent=1).encode("utf-16-le")),
    "empty lines before the header": ("a.csv", "\n,\nquestion,answer\na,xä\nb,xä\n".encode()),
}


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
def test_other_encodings_and_lines_before_the_header(make: Maker, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert sorted(texts(make(tmp_path / name))) == [turn(n, "xä") for n in "ab"]


def test_lines_that_end_with_a_return_alone_are_explained(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"question,answer\ra,x\rb,x\r")
    with pytest.raises(DataError, match="carriage return alone"):
        make(tmp_path / "a.csv")


def test_a_folder_of_one_conversation_each_and_a_description(make: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for n in "ab":
        (folder / f"{n}.json").write_text(json.dumps(chat((U, n), (A, "x")), indent=1))
    (folder / "info.json").write_text('{"version": 1}')
    (folder / "labels.json").write_text('{"names": {"a": 1}}')
    record = make(folder)
    assert sorted(texts(record)) == [turn(n, "x") for n in "ab"]
    assert record.notes == ["files that are not read: info.json, labels.json"]


def test_a_wrapper_of_rows_in_a_folder_is_no_description(make: Maker, tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.json").write_text(json.dumps({"data": [{"question": "c", "answer": "xä"}]}))
    assert sorted(texts(make(tmp_path))) == [turn(n, "xä") for n in "abc"]


def test_a_file_called_holdout_is_held_out(make: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "a.jsonl", ROWS)
    write_lines(folder / "holdout.jsonl", [{"question": "c", "answer": "x"}])
    assert sorted(texts(make(folder), validation=False)) == [turn(n, "xä") for n in "ab"]
    assert make(folder).notes == ["held out, never trained on: holdout.jsonl"]


def test_an_optional_column_in_another_case_after_the_first_rows(make: Maker, tmp_path: Path) -> None:
    rows = [{"Instruction": f"i{n}", "Output": "x"} for n in range(513)]
    rows.append({"Instruction": "late", "Output": "x", "Input": "ctx", "System": "Arr."})
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert sum("late\n\nctx" in text and "Arr." in text for text in texts(record)) == 1
    assert record.notes == []


def test_messages_that_call_their_content_text(make: Maker, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": U, "text": n}, {"role": A, "text": "x"}]} for n in "ab"]
    assert sorted(texts(make(write_lines(tmp_path / "a.jsonl", rows)))) == [turn(n, "x") for n in "ab"]


KINDS = {
    "a workbook": (b"PK\x03\x04\0", "Excel workbook"),
    "Parquet": (b"PAR1\x15", r"\.parquet"),
    "gzip": (b"\x1f\x8b\x08\0", r"\.gz"),
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
@pytest.mark.parametrize(("content", "words"), KINDS.values(), ids=KINDS)
def test_files_under_a_wrong_name_are_called_what_they_are(
    make: Maker, tmp_path: Path, content: bytes, words: str, suffix: str
) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=rf"expected \w+, found .*{words}"):
        make(tmp_path / f"a.{suffix}")


def test_a_message_without_a_role_is_named(make: Maker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a message has no role"):
        make(write_lines(tmp_path / "a.jsonl", [{"messages": [{"content": "a"}, {"role": A, "content": "x"}]}]))
