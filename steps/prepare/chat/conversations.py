"""Source rows → conversations: the messages of each row as chat templates take them, and which of them are learned. Pure.

Called by `samples` for every row. A row that cannot be used gives a `Skip` with the reason in words, never an exception. Whether
roles may stand in a given order is the template's to say: some take two questions in a row, or no system turn, and some do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.prepare.chat.blocks import unfolded
from steps.prepare.chat.forms import Layout
from steps.prepare.chat.messages import (
    Message,
    Skip,
    content_of,
    is_missing,
    parsed,
    to_message,
    to_text,
    to_tools,
    weight_of,
)

ASKED = ("instruction", "question", "prompt")
ANSWERED = ("output", "answer", "completion")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, ending with one of the assistant's; or a bare text."""

    messages: tuple[Message, ...]
    learned: tuple[int, ...]
    """Indices of the assistant's messages that are learned; at least one, ascending. Empty for a bare text."""
    tools: tuple[dict[str, Any], ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The row's own arguments for the template."""
    text: str = ""
    """A bare text, learned from its first token to its end; then there are no messages."""

    @property
    def asked(self) -> tuple[Message, ...]:
        """What comes before the last answer that is learned."""
        return self.messages[: self.learned[-1]]

    @property
    def answer(self) -> Message:
        """The last message that is learned."""
        return self.messages[self.learned[-1]]


def of_turns(*turns: tuple[str, str]) -> Conversation:
    """A conversation of (role, content), every answer learned."""
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Conversation(messages, tuple(index for index, (role, _) in enumerate(turns) if role == "assistant"))


def to_conversation(values: Mapping[str, Any], layout: Layout, *, system: str = "") -> Conversation | Skip:
    """The conversation of one row. `system` stands before conversations that bring no system turn."""
    parts = {part: values.get(column) for part, column in layout.columns.items()}
    weight = parts.get("weight")
    if not is_missing(weight) and (unused := _unlearned(weight)):
        return unused
    if not MARKING.isdisjoint(values) and (unused := _marked(values, layout.shape)):
        return unused
    if "text" in parts:
        text = to_text(parts["text"])
        if isinstance(text, str) and not text.strip():
            return Skip("no text")
        return text if isinstance(text, Skip) else Conversation((), (), text=text)
    raw = _listed(parts["messages"]) if "messages" in parts else _asked_and_answered(parts)
    if isinstance(raw, Skip):
        return raw
    own = to_text(content_of(parts.get("system")))
    if isinstance(own, Skip):
        return own
    before = own if own.strip() else system
    if before and not _begins_with_system(raw):
        raw = [{"role": "system", "content": before}, *raw]
    return _conversation(raw, parts)


def _unlearned(weight: Any) -> Skip | None:
    """Why a row of this weight is not learned; None if it is."""
    learned = weight_of({"weight": weight})
    if isinstance(learned, Skip):
        return Skip(
            "a weight that is neither 0 nor 1: a row is learned or not (round it; or rename the column if it means other things)"
        )
    return None if learned else Skip("a weight of 0")


MEDIA = ("image", "images", "video", "videos", "audio", "audios")
MARKING = frozenset({*MEDIA, "label", "kto_tag"})
"""Columns that may say that a row is not to be learned."""


def _marked(values: Mapping[str, Any], shape: str) -> Skip | None:
    """Why a row is not learned whose other columns say so: an unwanted answer, as KTO's data has them, or one about a picture."""
    for name in ("label", "kto_tag") if shape.startswith("prompt_") else ("kto_tag",):
        if name in values and str(values[name]).lower() == "false":
            return Skip(f"a {name} of false, which marks an answer that is not wanted")
    found = next((name for name in MEDIA if name in values and _is_medium(values[name])), "")
    return (
        Skip(f"something in its column {found}: only text is learned (without that column, its text is)")
        if found
        else None
    )


def _is_medium(value: Any) -> bool:
    """Whether anything is in such a column: a file's name, bytes, or a list of them."""
    if isinstance(value, Mapping):
        return any(_is_medium(inner) for inner in value.values())
    return isinstance(value, str | bytes | list) and value not in ("", "[]", [])


def _begins_with_system(raw: Sequence[Any]) -> bool:
    first = raw[0] if raw and isinstance(raw[0], Mapping) else {}
    return str(first.get("role") or first.get("from")).lower() in ("system", "developer")


def _listed(messages: Any) -> list[Any] | Skip:
    messages = parsed(messages)
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        return Skip(
            "messages that are not valid JSON (Python's own way to write them, perhaps): write them with json.dumps"
        )
    return messages if isinstance(messages, list) else Skip("no list of messages")


def _asked_and_answered(parts: Mapping[str, Any]) -> list[Any] | Skip:
    """Messages from the shapes that have a column for the question and one for the answer; either may be messages already."""
    asked = next(parts[part] for part in ASKED if part in parts)
    answered = next(parts[part] for part in ANSWERED if part in parts)
    earlier = _history(parts.get("history"))
    if isinstance(earlier, Skip):
        return earlier
    question = asked if _is_messages(asked) else _question(asked, parts.get("input"))
    said = answered if _is_messages(answered) else to_text(answered)
    if isinstance(question, Skip):
        return question
    if isinstance(said, Skip):
        return said
    if isinstance(said, str):
        return [*earlier, *question, {"role": "assistant", "content": said}]
    return [*earlier, *question, *(said[len(question) :] if said[: len(question)] == question else said)]


def _question(asked: Any, more: Any) -> list[Any] | Skip:
    question, added = to_text(asked), to_text(more)
    for text in (question, added):
        if isinstance(text, Skip):
            return text
    return [{"role": "user", "content": f"{question}\n\n{added}" if str(added).strip() else question}]


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_has_role(item) for item in value)


def _has_role(item: Any) -> bool:
    kinds = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    return isinstance(item, Mapping) and any(kind <= item.keys() for kind in kinds)


def _history(value: Any) -> list[Any] | Skip:
    """Earlier turns: pairs of question and answer, as Alpaca has them, or messages."""
    value = parsed(value)
    if is_missing(value) or value == "":
        return []
    turns = [turn for turn in value if not is_missing(turn)] if isinstance(value, list) else [value]
    if _is_messages(turns):
        return turns
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in turns):
        return Skip("a history that is not a list of pairs, question and answer")
    if any(is_missing(said) or said == "" for pair in turns for said in pair):
        return Skip("a history in which a question or an answer is missing")
    roles = ("user", "assistant")
    return [{"role": role, "content": said} for pair in turns for role, said in zip(roles, pair, strict=True)]


def _conversation(raw: Sequence[Any], parts: Mapping[str, Any]) -> Conversation | Skip:
    """Up to the last of the assistant's messages: what nobody answered teaches nothing."""
    messages: list[Message] = []
    learned: list[int] = []
    for index, item in enumerate(unfolded(raw)):
        message = to_message(item)
        if isinstance(message, Skip):
            return message
        if message["role"] == "assistant":
            weight = weight_of(item)
            if isinstance(weight, Skip):
                return weight
            learned += [index] if weight else []
        messages.append(message)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    tools, arguments = to_tools(parts.get("tools")), _arguments(parts)
    for found in (_fault(messages, learned), tools, arguments):
        if isinstance(found, Skip):
            return found
    return Conversation(tuple(messages), tuple(learned), tuple(tools), arguments)  # type: ignore[arg-type]


def _fault(messages: Sequence[Message], learned: Sequence[int]) -> Skip | None:
    """Why nothing could be learned from these."""
    if not messages:
        return Skip("no answer")
    for message in messages:
        content = message["content"].lstrip()
        if message["role"] == "assistant" and content.startswith("<think>") and "</think>" not in content:
            return Skip("an answer that breaks off within its <think>")
        if content.rpartition("</think>")[2].strip() or message.get("tool_calls"):
            continue
        if message["role"] in ("user", "assistant"):
            return Skip("no answer" if message["role"] == "assistant" else "no question")
    if all(message["role"] != "user" for message in messages):
        return Skip("no question")
    return None if learned else Skip("no answer that is learned: the weight of each is 0")


def _arguments(parts: Mapping[str, Any]) -> dict[str, Any] | Skip:
    """What the row itself says to the template."""
    own = parsed(parts.get("chat_template_kwargs"))
    documents = parsed(parts.get("documents"))
    if not is_missing(own) and not isinstance(own, dict):
        return Skip("its chat_template_kwargs are not a JSON object")
    given = {key: value for key, value in (own or {}).items() if value is not None}
    return given if is_missing(documents) or not documents else {**given, "documents": documents}


def detect_score(answers: Sequence[str]) -> str:
    """The score that suits these reference answers: last_number, json_fields or rouge_l, by nine in ten of them."""
    numbered = sum(_ends_in_number(answer) for answer in answers)
    objects = sum(_is_json_object(answer) for answer in answers)
    enough = 0.9 * max(1, len(answers))
    return "last_number" if numbered >= enough else "json_fields" if objects >= enough else "rouge_l"


def _ends_in_number(answer: str) -> bool:
    tail = answer.rsplit("####", 1)
    return len(tail) == 2 and tail[1].strip().lstrip("-$").replace(",", "").replace(".", "", 1).isdigit()


def _is_json_object(answer: str) -> bool:
    if not answer.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(answer), dict)
    except ValueError:
        return False
