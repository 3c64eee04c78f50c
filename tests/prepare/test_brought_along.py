"""What rows bring along beside questions and answers: marks of a template, blocks of another API, weights, gaps in a history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError
from tests.prepare.prepare_data import base_at, write_lines, write_tokenizer
from tests.prepare.test_public_reports import TOOLS, Maker, chat, decoder, make, texts, turn

__all__ = ["decoder", "make"]

U, A = "user", "assistant"
START, END = "<|im_start|>", "<|im_end|>"
WHOLE = f"{START}user\nHi {{}}{END}\n{START}assistant\nHo{END}\n"


def test_questions_already_written_out_in_the_own_template_are_refused(make: Maker, tmp_path: Path) -> None:
    asked = f"{START}user\nHi {{}}{END}\n{START}assistant\n"
    rows = [{"prompt": asked.format(n), "completion": f"Ho{END}"} for n in "ab"]
    with pytest.raises(DataError, match=r"2 with a message that is already written out .*\(<\|im_start\|>\)"):
        make(write_lines(tmp_path / "a.jsonl", rows))


def test_a_text_already_written_out_is_learned_as_it_is_and_named(make: Maker, tmp_path: Path) -> None:
    record = make(write_lines(tmp_path / "a.jsonl", [{"text": WHOLE.format(n)} for n in "ab"]))
    assert sorted(texts(record)) == [f"⟦{WHOLE.format(n)}⟧" for n in "ab"]
    assert record.notes == [
        "in 2 samples the text is a conversation already written out (<|im_start|>): it is learned whole, the questions too"
    ]


def test_an_answer_that_brings_its_end_has_it_once(make: Maker, tmp_path: Path) -> None:
    record = make(write_lines(tmp_path / "a.jsonl", [{"prompt": n, "completion": f"x{END}\n{END}"} for n in "ab"]))
    assert sorted(texts(record)) == [turn(n, "x") for n in "ab"]
    assert record.notes == ["in 2 samples an answer brings the token that ends it: it stands there once"]


def test_an_answer_that_is_nothing_but_its_end_is_none(make: Maker, tmp_path: Path) -> None:
    rows = [{"prompt": n, "completion": END if n == "c" else "x"} for n in "abc"]
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert (record.samples, record.skipped) == (2, 1)


@pytest.mark.parametrize("asked", ["[INST] Hi {} [/INST]", "### Instruction:\nHi {}\n\n### Response:\n"])
def test_marks_of_other_templates_are_named(make: Maker, tmp_path: Path, asked: str) -> None:
    record = make(write_lines(tmp_path / "a.jsonl", [{"prompt": asked.format(n), "completion": "x"} for n in "ab"]))
    assert len(record.notes) == 1
    assert record.notes[0].startswith("in 2 samples a message holds a mark of some chat template (")


def test_blocks_of_anthropics_api_are_calls_results_and_thoughts(make: Maker, tmp_path: Path) -> None:
    model = base_at(write_tokenizer(tmp_path / "model", template=TOOLS))
    use = {"type": "tool_use", "id": "t1", "name": "get", "input": {"city": "x"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]}
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": U, "content": [{"type": "text", "text": n}]},
                {
                    "role": A,
                    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "look "}, use],
                },
                {"role": U, "content": [result, {"type": "text", "text": "so?"}]},
                {"role": A, "content": [{"type": "text", "text": "rain!"}]},
            ],
            "tools": [{"name": "get", "input_schema": {"type": "object", "properties": {}}}],
        }
        for n in "ab"
    ]
    for text in texts(make(write_lines(tmp_path / "a.jsonl", rows), model=model)):
        assert 'CALL get {"city": "x"}<|im_end|>⟧' in text
        assert "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>user\nso?<|im_end|>" in text
        assert "⟦rain!<|im_end|>⟧" in text
        assert '"parameters": {"type": "object", "properties": {}}' in text


def test_geminis_parts_are_text(make: Maker, tmp_path: Path) -> None:
    rows = [
        {"contents": [{"role": U, "parts": [{"text": n}]}, {"role": "model", "parts": [{"text": "x"}]}]} for n in "ab"
    ]
    record = make(write_lines(tmp_path / "a.jsonl", rows), preset={"columns": {"messages": "contents"}})
    assert sorted(texts(record)) == [turn(n, "x") for n in "ab"]


@pytest.mark.parametrize("off", [0, 0.0, "0", False])
def test_a_row_of_weight_0_is_not_trained_on(make: Maker, tmp_path: Path, off: Any) -> None:
    rows: list[dict[str, Any]] = [{"question": n, "answer": "x", "weight": 1} for n in "abc"]
    rows[1]["weight"] = off
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert sorted(texts(record)) == [turn(n, "x") for n in "ac"]
    assert (record.skipped, record.notes) == (1, [])


def test_a_row_without_a_weight_is_learned(make: Maker, tmp_path: Path) -> None:
    rows = [{"weight": None, **chat((U, "a"), (A, "x"))}, chat((U, "b"), (A, "x"))]
    assert sorted(texts(make(write_lines(tmp_path / "a.jsonl", rows)))) == [turn(n, "x") for n in "ab"]


@pytest.mark.parametrize("of_row", [True, False])
def test_weights_between_are_refused_with_what_to_do(make: Maker, tmp_path: Path, of_row: bool) -> None:
    rows = [chat((U, n), (A, "x")) for n in "ab"]
    for row in rows:
        (row if of_row else row["messages"][1])["weight"] = 0.5
    with pytest.raises(DataError, match=r"2 with .*weight .*neither 0 nor 1: .*round it"):
        make(write_lines(tmp_path / "a.jsonl", rows))


def test_nulls_in_a_history_are_nothing_and_half_a_turn_is_named(make: Maker, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "c", "output": "d", "history": [None, ["a", "b"]]},
        {"instruction": "e", "output": "f", "history": [None]},
        {"instruction": "g", "output": "h", "history": [["a", None]]},
    ]
    file = write_lines(tmp_path / "a.jsonl", rows)
    assert sorted(texts(make(file))) == sorted([turn("a", "b") + turn("c", "d", ""), turn("e", "f")])
    with pytest.raises(DataError, match=r"no usable .*1 with a history in which a question or an answer is missing"):
        make(write_lines(tmp_path / "b.jsonl", rows[2:]))
