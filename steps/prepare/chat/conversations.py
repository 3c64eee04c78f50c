"""Source rows → conversations: which shape the columns have, and the turns of each row. Pure.

Called by `collect` for every row. A row that cannot be used gives a `Skip` with the reason in words, never an exception;
only a data set whose columns fit no shape at all is a DataError.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from steps.errors import DataError
from steps.settings.section import suggest

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Role
    content: str

    def to_dict(self) -> dict[str, str]:
        """As chat templates want it."""
        return {"role": self.role, "content": self.content}


Conversation = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a row gives no conversation; rows are counted by this text, so it names no single value of the row."""

    reason: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a data set are read: its shape, and the column of each part."""

    shape: str
    columns: dict[str, str]
    """Part (`instruction`, `answer`, `messages`, …) → column, for the columns that are there."""


@dataclass(frozen=True, slots=True)
class _Form:
    """A known shape: its parts with their usual columns."""

    required: dict[str, str]
    optional: dict[str, str]


# In this order they are tried when the shape is `auto`: the more telling columns first.
FORMS: dict[str, _Form] = {
    "messages": _Form({"messages": "messages"}, {"system": "system"}),
    "sharegpt": _Form({"messages": "conversations"}, {"system": "system"}),
    "alpaca": _Form({"instruction": "instruction", "output": "output"}, {"input": "input", "system": "system"}),
    "dolly": _Form({"instruction": "instruction", "output": "response"}, {"input": "context", "system": "system"}),
    "question_answer": _Form({"question": "question", "answer": "answer"}, {"system": "system"}),
    "prompt_completion": _Form({"prompt": "prompt", "completion": "completion"}, {"system": "system"}),
}
PARTS = sorted({part for form in FORMS.values() for part in (*form.required, *form.optional)})

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}


def find_layout(found: Iterable[str], *, shape: str = "auto", columns: Mapping[str, str] | None = None) -> Layout:
    """The layout that the columns `found` have, or that a preset asks for.

    Raises:
        DataError: unknown part names, named columns that are not there, or columns that fit no known shape.
    """
    there = set(found)
    named = dict(columns or {})
    _check_named(named, there)
    candidates = FORMS if shape == "auto" else {shape: FORMS[shape]}
    for name, form in candidates.items():
        wanted = {part: named.get(part, column) for part, column in form.required.items()}
        covers = set(named) <= {*form.required, *form.optional}
        if covers and there.issuperset(wanted.values()):
            optional = {part: named.get(part, column) for part, column in form.optional.items()}
            return Layout(name, wanted | {part: column for part, column in optional.items() if column in there})
    raise DataError(
        f"its columns fit {'no known shape' if shape == 'auto' else f'not the shape {shape}'}: "
        f"found {_listed(there)}; {_known_forms(candidates)}; "
        "or name the columns in a preset (a file in config/datasets, `columns:`)"
    )


def _check_named(named: Mapping[str, str], there: set[str]) -> None:
    for part, column in named.items():
        if part not in PARTS:
            raise DataError(f"columns.{part}: unknown part{suggest(part, PARTS)}; parts are {', '.join(PARTS)}")
        if column not in there:
            raise DataError(
                f"columns.{part}: there is no column {column!r}{suggest(column, sorted(there))}; found {_listed(there)}"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _known_forms(forms: Mapping[str, _Form]) -> str:
    return "needed: " + " · ".join(f"{name} ({', '.join(form.required.values())})" for name, form in forms.items())


def to_conversation(values: Mapping[str, Any], layout: Layout, *, system: str = "") -> Conversation | Skip:
    """The turns of one row: alternating user and assistant after at most one system turn, ending with the assistant.

    `system` stands before conversations that bring none.
    """
    parts = {part: values.get(column) for part, column in layout.columns.items()}
    turns = _list_turns(parts) if "messages" in parts else _single_turns(parts)
    if isinstance(turns, Skip):
        return turns
    own = parts.get("system")
    before = own if isinstance(own, str) and own.strip() else system
    if before and turns and turns[0].role != "system":
        turns = [Turn("system", before), *turns]
    return _checked(turns)


def _single_turns(parts: Mapping[str, Any]) -> list[Turn] | Skip:
    """One question and its answer, from the shapes that have a column for each."""
    asked = next(parts[part] for part in ("instruction", "question", "prompt") if part in parts)
    answered = next(parts[part] for part in ("output", "answer", "completion") if part in parts)
    if isinstance(asked, list) and isinstance(answered, list):
        return _list_turns({"messages": [*asked, *answered]})
    more = parts.get("input")
    question = _text(asked)
    if isinstance(question, Skip):
        return question
    if isinstance(more, str) and more.strip():
        question = f"{question}\n\n{more}"
    answer = _text(answered)
    return answer if isinstance(answer, Skip) else [Turn("user", question), Turn("assistant", answer)]


def _list_turns(parts: Mapping[str, Any]) -> list[Turn] | Skip:
    """Turns from a list of {role, content} (or sharegpt's {from, value})."""
    messages = parts.get("messages")
    if not isinstance(messages, list):
        return Skip("no list of messages")
    turns: list[Turn] = []
    for message in messages:
        if not isinstance(message, Mapping):
            return Skip("a message is not an object with role and content")
        given = message.get("role") or message.get("from")
        role = ROLES.get(str(given).lower())
        if role is None:
            return Skip(f"a message has the role {str(given)[:40]!r}; known are {', '.join(ROLES)}")
        content = _text(message.get("content") if message.get("content") is not None else message.get("value"))
        if isinstance(content, Skip):
            return content
        turns.append(Turn(role, content))
    return turns


def _text(value: Any) -> str | Skip:
    """A content as text: strings as they are, text parts joined, numbers and objects as JSON, nothing as ''."""
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and "type" in part for part in value):
        kinds = {str(part["type"]) for part in value} - {"text"}
        if kinds:
            return Skip(f"a content has parts that are not text ({', '.join(sorted(kinds))[:60]})")
        value = "".join(str(part.get("text", "")) for part in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return Skip("a text holds half a surrogate pair, which is no valid Unicode")
    return text


def _checked(turns: Sequence[Turn]) -> Conversation | Skip:
    """Refuse what a chat template could not render, or nothing could be learned from."""
    while turns and turns[-1].role == "user":  # a question that nobody answered, at the end of a longer conversation
        if len(turns) <= 2:
            break
        turns = turns[:-1]
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    for index, turn in enumerate(spoken):
        if turn.role == "system":
            return Skip("a system turn is not the first one")
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            return Skip(f"two {turn.role} turns in a row" if index else "the assistant speaks first")
        if not turn.content.strip():
            return Skip("no answer" if turn.role == "assistant" else "no question")
    if len(spoken) < 2:
        return Skip("no answer")
    return tuple(turns)


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
