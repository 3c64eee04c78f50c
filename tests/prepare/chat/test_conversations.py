from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.errors import DataError
from steps.prepare.chat.conversations import Conversation, detect_score, of_turns, to_conversation
from steps.prepare.chat.forms import FORMS, find_layout
from steps.prepare.chat.messages import Skip

U, A, S = "user", "assistant", "system"


def said(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


USABLE = {
    "alpaca": ({"instruction": "Do", "input": "", "output": "Done"}, "alpaca", of_turns((U, "Do"), (A, "Done"))),
    "alpaca with input": (
        {"instruction": "Add", "input": "1 2", "output": "3"},
        "alpaca",
        of_turns((U, "Add\n\n1 2"), (A, "3")),
    ),
    "alpaca without the input column": (
        {"instruction": "Do", "output": "Ok"},
        "alpaca",
        of_turns((U, "Do"), (A, "Ok")),
    ),
    "alpaca with a system column": (
        {"instruction": "Do", "output": "Ok", "system": "Be brief"},
        "alpaca",
        of_turns((S, "Be brief"), (U, "Do"), (A, "Ok")),
    ),
    "dolly": (
        {"instruction": "Who", "context": "Ann", "response": "Ann", "category": "qa"},
        "dolly",
        of_turns((U, "Who\n\nAnn"), (A, "Ann")),
    ),
    "question and answer": ({"question": "2+2", "answer": "4"}, "question_answer", of_turns((U, "2+2"), (A, "4"))),
    "answer that is a number": ({"question": "2+2", "answer": 4}, "question_answer", of_turns((U, "2+2"), (A, "4"))),
    "answer that is an object": (
        {"prompt": "x", "completion": {"a": "é"}},
        "prompt_completion",
        of_turns((U, "x"), (A, '{"a": "é"}')),
    ),
    "prompt and completion as messages": (
        {"prompt": [{"role": U, "content": "x"}], "completion": [{"role": A, "content": "y"}]},
        "prompt_completion",
        of_turns((U, "x"), (A, "y")),
    ),
    "messages of several turns": (
        said((S, "Be"), (U, "1"), (A, "2"), (U, "3"), (A, "4")),
        "messages",
        of_turns((S, "Be"), (U, "1"), (A, "2"), (U, "3"), (A, "4")),
    ),
    "messages that end with a question": (
        said((U, "1"), (A, "2"), (U, "3")),
        "messages",
        of_turns((U, "1"), (A, "2")),
    ),
    "content as a list of text parts": (
        said((U, [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), (A, "c")),
        "messages",
        of_turns((U, "ab"), (A, "c")),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        "sharegpt",
        of_turns((U, "hi"), (A, "ho")),
    ),
}


@pytest.mark.parametrize(("row", "shape", "expected"), USABLE.values(), ids=USABLE)
def test_each_shape_is_detected_and_becomes_turns(row: dict[str, Any], shape: str, expected: Conversation) -> None:
    layout = find_layout(row)
    assert layout.shape == shape
    assert to_conversation(row, layout) == expected


SKIPPED = {
    "unknown role": (said((U, "a"), ("narrator", "b")), "role 'narrator'"),
    "the assistant alone": (said((A, "a")), "no question"),
    "an image part": (said((U, [{"type": "image", "url": "x"}]), (A, "c")), "not text (image)"),
    "empty answer": (said((U, "a"), (A, "  ")), "no answer"),
    "null answer": (said((U, "a"), (A, None)), "no answer"),
    "empty question": (said((U, ""), (A, "c")), "no question"),
    "question alone": (said((U, "a")), "no answer"),
    "nothing said": ({"messages": []}, "no answer"),
    "messages that are a string": ({"messages": "a"}, "no list of messages"),
    "a message that is a string": ({"messages": ["a"]}, "not an object with role and content"),
    "half a surrogate pair": (said((U, "a"), (A, "\ud800")), "surrogate"),
    "half a surrogate pair in a question": ({"question": "\ud800", "answer": "b"}, "surrogate"),
    "answer missing in this row": ({"question": "a"}, "no answer"),
}


@pytest.mark.parametrize(("row", "words"), SKIPPED.values(), ids=SKIPPED)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, Any], words: str) -> None:
    layout = find_layout(row) if "messages" in row else find_layout(["question", "answer"])
    skip = to_conversation(row, layout)
    assert isinstance(skip, Skip)
    assert words in skip.reason


def test_a_presets_system_turn_stands_before_conversations_that_bring_none() -> None:
    layout = find_layout(["messages"])
    assert to_conversation(said((U, "a"), (A, "b")), layout, system="Be") == of_turns((S, "Be"), (U, "a"), (A, "b"))
    own = to_conversation(said((S, "own"), (U, "a"), (A, "b")), layout, system="Be")
    assert own == of_turns((S, "own"), (U, "a"), (A, "b"))


def test_named_columns_win_over_the_usual_ones() -> None:
    layout = find_layout(["q", "a", "answer"], columns={"question": "q", "answer": "a"})
    assert (layout.shape, layout.columns["question"], layout.columns["answer"]) == ("question_answer", "q", "a")


REFUSED = {
    "no known shape": ({"text", "label"}, {}, "auto", ["found label, text", "alpaca (instruction, output)"]),
    "not the shape asked for": (
        {"question", "answer"},
        {},
        "alpaca",
        ["not the shape alpaca", "found answer, question"],
    ),
    "a named column that is not there": (
        {"question", "answer"},
        {"answer": "anwser"},
        "auto",
        ["columns.answer", "no column 'anwser'", "did you mean 'answer'", "found answer, question"],
    ),
    "an unknown part": (
        {"a"},
        {"reply": "a"},
        "auto",
        ["columns.reply: unknown part", "parts are answer, chat_template_kwargs"],
    ),
    "no columns at all": (set(), {}, "auto", ["found none"]),
}


@pytest.mark.parametrize(("found", "columns", "shape", "words"), REFUSED.values(), ids=REFUSED)
def test_columns_that_do_not_fit_are_named(
    found: set[str], columns: dict[str, str], shape: str, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        find_layout(found, shape=shape, columns=columns)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        (["so 3\n#### 3", "#### -1,200.5", "#### $7"], "last_number"),
        (['{"a": 1}', ' {"b": 2}'], "json_fields"),
        (["Paris", "{not json}", "#### nine"], "rouge_l"),
        ([], "rouge_l"),
        (["#### 1"] * 9 + ["none"], "last_number"),
    ],
)
def test_the_score_follows_from_the_answers(answers: list[str], score: str) -> None:
    assert detect_score(answers) == score


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "assistant", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(FORMS)), st.lists(JSON, min_size=3, max_size=3))
def test_any_row_gives_a_conversation_or_a_reason(shape: str, values: list[Any]) -> None:
    columns = [*FORMS[shape].required.values(), *FORMS[shape].optional.values()]
    found = to_conversation(dict(zip(columns, values, strict=False)), find_layout(columns, shape=shape))
    if isinstance(found, Skip):
        assert found.reason
    else:
        assert isinstance(found, Conversation)
        assert found.text.strip() or found.messages[-1]["role"] == "assistant"
        assert all(found.messages[index]["role"] == "assistant" for index in found.learned)


def call(**given: Any) -> dict[str, Any]:
    return {"messages": [{"role": U, "content": "a"}, {"role": A, "content": "b", **given}]}


SHAREGPT = [{"from": "human", "value": "a"}, {"from": "function_call", "value": "look up"}]
MORE_SKIPPED: dict[str, tuple[dict[str, Any], str]] = {
    "bytes that are no text": (said((U, b"\xff"), (A, "c")), "bytes that are no UTF-8"),
    "a weight in words": (call(weight="much"), "weight is neither a number nor true or false"),
    "half a weight": (call(weight=0.5), "weight is neither 0 nor 1"),
    "a call that is no JSON": ({"conversations": SHAREGPT}, "a function_call is not valid JSON"),
    "a call that is text": (call(tool_calls=["look up"]), "a tool call is not an object"),
    "a call with half a surrogate pair": (call(tool_calls=[{"name": "\ud800"}]), "surrogate"),
    "tools that are text": ({**call(), "tools": "{broken"}, "its tools are not a list of JSON objects"),
    "tools that are numbers": ({**call(), "tools": [1]}, "its tools are not a list of JSON objects"),
    "arguments that are text": ({**call(), "chat_template_kwargs": "thinking"}, "not a JSON object"),
    "a blank text": ({"text": " "}, "no text"),
    "a text with half a surrogate pair": ({"text": "\ud800"}, "surrogate"),
    "a system turn with half a surrogate pair": ({**call(), "system": "\ud800"}, "surrogate"),
    "an input with half a surrogate pair": ({"instruction": "a", "input": "\ud800", "output": "b"}, "surrogate"),
    "a history of texts": (
        {"instruction": "a", "output": "b", "history": ["x"]},
        "a history that is not a list of pairs",
    ),
}


@pytest.mark.parametrize(("row", "words"), MORE_SKIPPED.values(), ids=MORE_SKIPPED)
def test_fields_that_cannot_be_used_are_named(row: dict[str, Any], words: str) -> None:
    skip = to_conversation(row, find_layout(row))
    assert isinstance(skip, Skip)
    assert words in skip.reason


def test_other_ways_to_write_the_same_are_read() -> None:
    layout = find_layout(["messages"])
    as_bytes = to_conversation(said((U, b"a"), (A, "b")), layout)
    assert as_bytes == of_turns((U, "a"), (A, "b"))
    bare = to_conversation({**call(), "tools": [{"name": "f", "x": None}], "documents": [{"text": "d"}]}, layout)
    assert isinstance(bare, Conversation)
    assert bare.tools == ({"type": "function", "function": {"name": "f"}},)
    assert bare.arguments == {"documents": [{"text": "d"}]}
    earlier = {"instruction": "c", "output": "d", "history": said((U, "a"), (A, "b"))["messages"]}
    assert to_conversation(earlier, find_layout(earlier)) == of_turns((U, "a"), (A, "b"), (U, "c"), (A, "d"))


def test_preference_data_is_told_what_it_is_for() -> None:
    with pytest.raises(DataError, match="for DPO or a reward model"):
        find_layout(["prompt", "chosen", "rejected"])
    assert find_layout(["prompt", "chosen", "rejected"], columns={"prompt": "prompt", "completion": "chosen"})


def test_edges_of_many_lengths_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from steps.prepare.chat import edges

    monkeypatch.setattr(edges, "MOST_SHAPES", 2)
    seen = edges.Edges()
    for count in range(5):
        conversation = of_turns(*[(S, "x")] * count, (U, "q"), (A, "answer"))
        text = "x" * count + "<q>[answer]"
        seen.learn(conversation, text, len(text) - len("[answer]"))
        assert seen.find(conversation, text) == (len(text) - len("[answer]"), len(text))
        assert len(seen._seen) <= 2
