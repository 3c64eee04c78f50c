"""Single messages and rows, as any program may write them: what they become, or why not. No model is needed."""

from __future__ import annotations

from typing import Any

import pytest

from steps.prepare.chat.blocks import unfolded
from steps.prepare.chat.conversations import of_turns, to_conversation
from steps.prepare.chat.edges import Edges
from steps.prepare.chat.forms import find_layout, with_cases
from steps.prepare.chat.messages import Skip, to_message, to_tools, weight_of
from steps.prepare.read.json_objects import rows_in

U, A, S = "user", "assistant", "system"
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
BECOMES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one part and no list": (
        {"role": U, "content": {"type": "text", "text": "q"}},
        {"role": U, "content": "q"},
    ),
    "the older way to call": (
        {"role": A, "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": A, "content": "", "tool_calls": [CALL]},
    ),
    "a turn that is a call": (
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"role": A, "content": "", "tool_calls": [CALL]},
    ),
    "arguments that are blank": (
        {"role": A, "content": "", "tool_calls": [{"function": {"name": "f", "arguments": " "}}]},
        {"role": A, "content": "", "tool_calls": [CALL]},
    ),
}


@pytest.mark.parametrize(("raw", "message"), BECOMES.values(), ids=BECOMES)
def test_other_ways_to_write_a_message(raw: dict[str, Any], message: dict[str, Any]) -> None:
    assert to_message(raw) == message


NO_MESSAGE: dict[str, tuple[dict[str, Any], str]] = {
    "no role": ({"content": "q"}, "no role"),
    "a call that is no JSON": ({"from": "function_call", "value": "f()"}, "not valid JSON"),
    "a call that is a number": ({"role": A, "content": "", "tool_calls": [1]}, "not an object"),
    "arguments that break off": (
        {"role": A, "content": "", "tool_calls": [{"name": "f", "arguments": '{"a": '}]},
        "arguments of a tool call are not valid JSON",
    ),
}


@pytest.mark.parametrize(("raw", "words"), NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_what_is_no_message_is_named(raw: dict[str, Any], words: str) -> None:
    found = to_message(raw)
    assert isinstance(found, Skip)
    assert words in found.reason


def test_a_mask_may_mean_either_and_is_refused() -> None:
    assert isinstance(weight_of({"role": A, "content": "a", "mask": 1}), Skip)
    assert weight_of({"role": A, "content": "a", "mask": None}) is True


def test_a_tool_that_says_that_it_is_a_function_stays() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert to_tools([tool]) == [tool]


UNUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an answer with half a surrogate pair": ({"prompt": "q", "completion": "\ud83d"}, "surrogate"),
    "thinking that breaks off": ({"prompt": "q", "completion": "<think>a"}, "breaks off"),
    "an empty question": ({"prompt": " ", "completion": "a"}, "no question"),
}


@pytest.mark.parametrize(("row", "words"), UNUSED.values(), ids=UNUSED)
def test_what_is_no_conversation_is_named(row: dict[str, Any], words: str) -> None:
    found = to_conversation(row, find_layout(row))
    assert isinstance(found, Skip)
    assert words in found.reason


def test_an_empty_system_turn_is_no_fault() -> None:
    row = {"messages": [{"role": role, "content": text} for role, text in ((S, ""), (U, "q"), (A, "a"))]}
    assert to_conversation(row, find_layout(row)) == of_turns((S, ""), (U, "q"), (A, "a"))


def test_a_message_of_results_alone_leaves_no_message_behind() -> None:
    results = {"role": U, "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r"}]}
    assert [message["role"] for message in unfolded([results])] == ["tool"]


def test_an_answer_that_is_not_printed_teaches_nothing_of_its_edges() -> None:
    seen, talk = Edges(), of_turns((U, "q"), (A, "a"))
    seen.learn(talk, "User: q Assistant: A", len("User: q Assistant: "))
    assert seen.find(talk, "User: q Assistant: a") is None


def test_a_column_in_another_case_than_in_the_first_rows_is_found() -> None:
    layout = find_layout(["question", "answer"])
    assert with_cases(layout, ["Question", "answer"]).columns["question"] == "Question"
    assert with_cases(layout, ["question", "answer"]) is layout


def test_lists_of_turns_are_no_columns() -> None:
    turns = [{"role": U, "content": "q"}]
    assert rows_in({"prompt": turns, "completion": turns}) == []
