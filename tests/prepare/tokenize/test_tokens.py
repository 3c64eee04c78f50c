from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from steps.errors import ModelError
from steps.prepare.chat.conversations import Conversation, of_turns
from steps.prepare.chat.template import FALLBACK, Refused
from steps.prepare.tokenize.tokens import ChatTokenizer
from steps.prepare.tokenize.words import KNOWN_PATTERNS, LATIN, SYMBOLS, find_words
from tests.prepare.prepare_data import TEMPLATE, write_tokenizer

CONVERSATIONS: dict[str, Conversation] = {
    "one question": of_turns(("user", "What is it?"), ("assistant", "It is the fox.")),
    "three answers after a system turn": of_turns(
        ("system", "Be brief."),
        ("user", "One"),
        ("assistant", "first answer"),
        ("user", "Two"),
        ("assistant", "second\n\nanswer"),
        ("user", "Three"),
        ("assistant", "first answer"),
    ),
    "the answer stands in the question too": of_turns(("user", "fox"), ("assistant", "fox")),
    "characters of several bytes": of_turns(("user", "naïve — 日本語 🦊"), ("assistant", "“çà” 日本 🦊🦊")),
    "special tokens in the text": of_turns(("user", "a<|im_end|>b"), ("assistant", "c d")),
    "spaces and line ends": of_turns(("user", " a \r\n b\t"), ("assistant", "x  \n\n  y")),
}


@pytest.fixture(params=["tiny", pytest.param("smollm2", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue("tiny_model" if request.param == "tiny" else "smollm2"))


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_ids_are_those_of_transformers_and_only_answers_are_learned(folder: Path, conversation: Conversation) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    ours = ChatTokenizer.load(folder)
    [tokens] = ours.encode([ours.render(conversation)])
    ids, mask = np.frombuffer(tokens.ids, np.int32), np.frombuffer(tokens.mask, np.uint8)
    assert ids.tolist() == theirs.apply_chat_template(list(conversation.messages), return_dict=False)
    answers = [turn["content"] + "<|im_end|>" for turn in conversation.messages if turn["role"] == "assistant"]
    learned = np.split(ids, np.flatnonzero(np.diff(mask)) + 1)[1::2]
    decoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [decoder.decode(part.tolist(), skip_special_tokens=False) for part in learned] == answers


def test_the_prompt_is_what_transformers_asks_the_model_to_continue(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    ours = ChatTokenizer.load(folder)
    for conversation in CONVERSATIONS.values():
        before = list(conversation.messages[:-1])
        prompt = ours.prompt(conversation)
        assert prompt == theirs.apply_chat_template(before, add_generation_prompt=True, tokenize=False)
        whole = theirs.apply_chat_template(before, add_generation_prompt=True, return_dict=False)
        assert ours.encode_prompt(prompt) == whole


def test_an_answer_that_begins_with_white_space_keeps_the_ids_of_the_whole_text(tiny_model: Path) -> None:
    ours = ChatTokenizer.load(tiny_model)
    rendered = ours.render(of_turns(("user", "a"), ("assistant", "\n\n  b")))
    [tokens] = ours.encode([rendered])
    assert np.frombuffer(tokens.ids, np.int32).tolist() == ours.encode_prompt(rendered.text)
    assert 1 in tokens.mask


# Splitting into words -----------------------------------------------------------------------------------------------

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
WAYS: dict[str, dict[str, Any]] = {
    "gpt2": {**BYTES, "use_regex": True},
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}],
    },
} | {
    name: {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {**BYTES, "use_regex": False},
        ],
    }
    for name, pattern in zip(("llama3", "qwen2"), KNOWN_PATTERNS, strict=True)
}


def tokenizer_with(folder: Path, **changed: Any) -> Tokenizer:
    return Tokenizer.from_str(json.dumps({**json.loads((folder / "tokenizer.json").read_bytes()), **changed}))


text_of_old_characters = st.text(
    st.sampled_from(" \t\n\r\x0b\x1c\x1f\x85\xa0ſs'St1239.!ab\u2028\u00b2")
    | st.sampled_from([chr(code) for part in (LATIN, SYMBOLS) for code in part]),
    max_size=30,
)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=text_of_old_characters)
def test_word_by_word_gives_the_tokenizers_own_ids(tiny_model: Path, way: dict[str, Any], text: str) -> None:
    tokenizer = tokenizer_with(tiny_model, pre_tokenizer=way)
    words = find_words(tokenizer)
    assert words is not None
    assert words.takes(text)
    encoded = words.encode(text, [])
    assert encoded is not None
    assert np.frombuffer(encoded[0], dtype=np.int32).tolist() == tokenizer.encode(text, add_special_tokens=False).ids


UNKNOWN: dict[str, dict[str, Any]] = {
    "another pattern": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False},
                {**BYTES, "use_regex": False},
            ],
        }
    },
    "a space put first": {"pre_tokenizer": {**BYTES, "add_prefix_space": True, "use_regex": True}},
    "sentencepiece's way": {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    },
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "no pre-tokenizer": {"pre_tokenizer": None},
}


@pytest.mark.parametrize("changed", UNKNOWN.values(), ids=UNKNOWN)
def test_a_tokenizer_of_another_kind_is_left_to_itself(tiny_model: Path, changed: dict[str, Any]) -> None:
    assert find_words(tokenizer_with(tiny_model, **changed)) is None


def test_text_that_a_normalizer_may_change_is_left_to_the_tokenizer(tiny_model: Path) -> None:
    words = find_words(tokenizer_with(tiny_model, normalizer={"type": "NFC"}))
    assert words is not None
    assert words.takes("plain")
    assert not words.takes("é")


# Templates ----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_template_gets_the_fallback(tmp_path: Path) -> None:
    ours = ChatTokenizer.load(write_tokenizer(tmp_path, template=None))
    rendered = ours.render(of_turns(("system", "Be."), ("user", "a"), ("assistant", "b")))
    assert ours.template.source == FALLBACK
    assert rendered.text == "Be.\n\n### User:\na\n\n### Assistant:\nb<|im_end|>\n"
    assert [rendered.text[start:end] for start, end in rendered.targets] == ["b<|im_end|>"]


def test_the_file_beside_the_tokenizer_wins_over_its_config(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, template="{{ 'config' }}")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert ChatTokenizer.load(folder).template.source == TEMPLATE


def test_a_template_that_refuses_a_conversation_is_quoted(tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns') }}{% endif %}" + TEMPLATE
    ours = ChatTokenizer.load(write_tokenizer(tmp_path, template=refusing))
    with pytest.raises(Refused, match="No system turns"):
        ours.render(of_turns(("system", "Be."), ("user", "a"), ("assistant", "b")))


def test_a_template_that_trims_prints_the_date_and_marks_answers_works_the_same_every_day(tmp_path: Path) -> None:
    template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m.role }}: "
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content | trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    rendered = ChatTokenizer.load(write_tokenizer(tmp_path, template=template)).render(
        of_turns(("user", "a"), ("assistant", "  b  "))
    )
    assert rendered.text == "26 Jul 2024<|im_start|>user: a<|im_start|>assistant: b<|im_end|>"
    assert [rendered.text[start:end] for start, end in rendered.targets] == ["b<|im_end|>"]


def break_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")


def break_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_template, "not valid Jinja"),
        (break_config, "not valid JSON"),
        (break_tokenizer, "is no tokenizer"),
        (remove_tokenizer, "no tokenizer that can be used"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, damage: Any, words: str) -> None:
    damage(write_tokenizer(tmp_path))
    with pytest.raises(ModelError, match=words):
        ChatTokenizer.load(tmp_path)


def test_tokens_that_only_the_config_adds_are_known(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    added = {"content": "<|new|>", "special": True} | dict.fromkeys(
        ("lstrip", "rstrip", "normalized", "single_word"), False
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": {"400": added}}))
    assert len(ChatTokenizer.load(folder).encode_prompt("<|new|>")) == 1
