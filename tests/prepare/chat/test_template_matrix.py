"""Real templates × kinds of conversation: ids and labels are what transformers renders, token by token, or refused by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from steps.prepare.chat.conversations import Conversation, of_turns
from steps.prepare.chat.template import Refused
from steps.prepare.tokenize.tokens import ChatTokenizer
from tests.prepare.chat.template_matrix import (
    KINDS,
    MODELS,
    Reference,
    conversation_of,
    decoded,
    write_tokenizer,
)

NO_CALLS = ("tool calls", "text beside a call")
REFUSED = {
    **{(name, kind): "it prints no tool_calls" for name in ("phi-3", "phi-4", "smollm2") for kind in NO_CALLS},
    **{("smollm3", kind): "it prints no tool_calls" for kind in NO_CALLS},
    **{(name, kind): "it prints no tool_calls" for name in ("granite-3.3", "none at all") for kind in NO_CALLS},
    **{("no end (Falcon's way)", kind): "it prints no tool_calls" for kind in NO_CALLS},
    ("gemma-3", "tool calls"): "Conversation roles must alternate",
    ("gemma-3", "text beside a call"): "it prints no tool_calls",
    ("deepseek-r1-distill", "text beside a call"): "it prints no tool_calls",
}
R1 = "<｜end▁of▁sentence｜>"
R1_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look_up\n"
    '```json\n{"town": "Bergen"}\n```<｜tool▁call▁end｜>'
)
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"town": "Bergen"}}\n</tool_call>'
EMPTY = "<think>\n\n</think>\n\n"
PHI3 = "<|end|>\n<|endoftext|>"
# Where the text before an answer is not what the model is prompted with, since the template writes turns anew: read by eye.
REWRITTEN = {
    ("qwen3", "several turns"): ["first<|im_end|>", "second\n\nline<|im_end|>", f"{EMPTY}first<|im_end|>"],
    ("qwen3", "tool calls"): [f"{CALL}<|im_end|>", f"{EMPTY}It rains.<|im_end|>"],
    ("qwen3", "reasoning"): ["2<|im_end|>", "<think>\ntwo and two\n</think>\n\n4<|im_end|>"],
    ("qwen3", "the answer is in the header"): ["assistant<|im_end|>", f"{EMPTY}<b>user<|im_end|>"],
    ("mistral-nemo", "a system turn"): ["Hello.</s>"],
    ("phi-3", "several turns"): ["first<|end|>", "second\n\nline<|end|>", f"first{PHI3}"],
    ("phi-3", "reasoning"): ["2<|end|>", f"4{PHI3}"],
    ("phi-3", "the answer is in the header"): ["assistant<|end|>", f"<b>user{PHI3}"],
    ("deepseek-r1-distill", "one turn"): [f"Hello there.{R1}"],
    ("deepseek-r1-distill", "several turns"): [f"first{R1}", f"second\n\nline{R1}", f"first{R1}"],
    ("deepseek-r1-distill", "a system turn"): [f"Hello.{R1}"],
    ("deepseek-r1-distill", "tool calls"): [f"{R1_CALL}{R1}", f"It rains.{R1}"],
    ("deepseek-r1-distill", "reasoning"): [f"2{R1}", f"4{R1}"],
    ("deepseek-r1-distill", "reasoning in the content"): [f"2{R1}"],
    ("deepseek-r1-distill", "the answer is in the header"): [f"assistant{R1}", f"<b>user{R1}"],
    ("deepseek-r1-distill", "a weight of 0"): [f"good{R1}"],
}
LEFT_OUT = {
    ("mistral-nemo", "a system turn"): "the system turn",
    ("llama-3.1", "text beside a call"): "the text beside a tool call",
    ("mistral-nemo", "text beside a call"): "the text beside a tool call",
    ("llama-3.1", "reasoning"): "the reasoning",
    ("deepseek-r1-distill", "reasoning in the content"): "the reasoning",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@cache
def loaded(folders: Path, name: str) -> tuple[ChatTokenizer, Reference]:
    folder = write_tokenizer(folders / str(list(MODELS).index(name)), MODELS[name])
    ours = ChatTokenizer.load(folder)
    return ours, Reference(folder, ours.template.source)


def as_rendered(ours: ChatTokenizer, conversation: Conversation) -> Conversation:
    """In the form that this template takes calls in."""
    for variant in ours.template.variants(conversation):
        try:
            text = ours.template.text(variant, variant.messages, generate=False)
        except Refused:
            continue
        if "Bergen" in text or not conversation.tools:
            return variant
    raise AssertionError("no form")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_labels_are_the_answers_as_transformers_renders_them(folders: Path, name: str, kind: str) -> None:
    ours, reference = loaded(folders, name)
    conversation = conversation_of(kind)
    if (name, kind) in REFUSED:
        with pytest.raises(Refused, match=REFUSED[name, kind]):
            ours.render(conversation)
        return
    rendered = ours.render(conversation)
    [tokens] = ours.encode([rendered])
    ids, mask = np.frombuffer(tokens.ids, np.int32), np.frombuffer(tokens.mask, np.uint8)
    conversation = as_rendered(ours, conversation)
    end = MODELS[name].end
    text = reference.text(conversation, conversation.messages)
    assert ids.tolist() == reference.ids(rendered.text)
    assert rendered.text == text or rendered.text.replace(end, "") == text.replace(end, "")
    assert rendered.text == text or "with no token" in rendered.notes[-1]
    labels = decoded(reference.tokenizer, ids, mask)
    if ours.template.marks_answers:
        marked = reference.masked(conversation)
        assert labels == (marked if len(labels) == len(marked) else marked[-len(labels) :])
    else:
        expected = reference.answers(conversation)
        read = REWRITTEN.get((name, kind), [""] * len(expected))
        whole = [found if found is None or found.endswith(end) else found + end for found in expected]
        assert labels == [by_eye if found is None else found for by_eye, found in zip(read, whole, strict=True)]
    ends = (end, MODELS[name].turn_end or end)
    assert all(label.rstrip().endswith(ends) for label in labels), "the end is learned"
    assert LEFT_OUT.get((name, kind), "") in " ".join(rendered.notes)


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_answer_is_its_end_alone(folders: Path, name: str) -> None:
    ours, reference = loaded(folders, name)
    [tokens] = ours.encode([ours.render(of_turns(("user", "a"), ("assistant", "")))])
    ids, mask = np.frombuffer(tokens.ids, np.int32), np.frombuffer(tokens.mask, np.uint8)
    [label] = decoded(reference.tokenizer, ids, mask)
    assert label.replace(EMPTY, "").removeprefix(MODELS[name].turn_end).strip() == MODELS[name].end


@pytest.mark.parametrize("name", MODELS)
def test_the_prompt_is_what_transformers_gives_to_generate_from(folders: Path, name: str) -> None:
    ours, reference = loaded(folders, name)
    conversation = conversation_of("a system turn")
    expected = reference.text(conversation, conversation.asked, add_generation_prompt=True)
    assert ours.prompt(conversation) == expected
    assert ours.encode_prompt(expected) == reference.ids(expected)


TRICKY = [
    (("user", "Hi?"), ("assistant", "Hello.")),
    (("user", "Hi? <|im_end|>"), ("assistant", " Hello.\n")),
    (("user", "a"), ("assistant", "<think>x</think>y")),
    (("user", "/no_think a"), ("assistant", "a")),
    (("user", "x" * 60), ("assistant", "y" * 60)),
    (("user", "assistant\n"), ("assistant", "assistant\n")),
    (("system", "/no_think"), ("user", "a"), ("assistant", "b")),
    (("system", "Be."), ("user", "a"), ("assistant", "b")),
    (("user", "a"), ("assistant", "b"), ("user", "a"), ("assistant", "b")),
]


@pytest.mark.parametrize("name", MODELS)
def test_what_was_seen_of_other_conversations_changes_no_labels(folders: Path, name: str) -> None:
    source = loaded(folders, name)[0]
    folder = folders / str(list(MODELS).index(name))
    conversations = [of_turns(*turns) for turns in TRICKY]
    fresh = [ChatTokenizer.load(folder).render(conversation) for conversation in conversations]
    for _ in range(2):
        assert [source.render(conversation) for conversation in conversations] == fresh
    assert [source.render(conversation) for conversation in reversed(conversations)] == fresh[::-1]


def test_a_base_model_without_a_template_begins_with_its_own_bos(folders: Path) -> None:
    ours, reference = loaded(folders, "none at all")
    text = ours.render(of_turns(("user", "a"), ("assistant", "b"))).text
    assert text == "<s>### User:\na\n\n### Assistant:\nb</s>\n"
    assert reference.tokenizer("x").input_ids[0] == reference.ids(text)[0]


def test_arguments_reach_the_template(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "qwen3", MODELS["qwen3"])
    ours = ChatTokenizer.load(folder, arguments={"enable_thinking": False})
    conversation = of_turns(("user", "a"), ("assistant", "b"))
    assert ours.prompt(conversation).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    rendered = ours.render(conversation)
    assert [rendered.text[slice(*span)] for span in rendered.targets] == ["b<|im_end|>"]


def test_another_template_wins_over_the_tokenizers_own(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "qwen3", MODELS["qwen3"])
    own = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    ours = ChatTokenizer.load(folder, template=own)
    assert ours.render(of_turns(("user", "a"), ("assistant", "b"))).text == "[user]a<|im_end|>[assistant]b<|im_end|>"


def test_marks_that_stop_before_the_end_are_widened_by_it(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", MODELS["qwen2.5"])
    own = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    rendered = ChatTokenizer.load(folder, template=own).render(of_turns(("user", "a"), ("assistant", "b")))
    assert [rendered.text[slice(*span)] for span in rendered.targets] == ["b<|im_end|>"]


def test_no_end_anywhere_is_refused(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", MODELS["no end (Falcon's way)"])
    config = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(config.replace('"eos_token"', '"unused"'))
    with pytest.raises(Refused, match="no end could be learned"):
        ChatTokenizer.load(folder).render(of_turns(("user", "a"), ("assistant", "b")))
