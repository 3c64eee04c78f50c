"""The shapes that data sets come in: which column holds which part of a conversation. Pure.

Called by `collect`, once per file, with the columns of the file's first rows, and by `samples` for a row that its file's shape
does not fit. Optional parts stand in every layout, since a row may have what the rows before it lack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from steps.errors import DataError
from steps.settings.section import suggest

MOST_LISTED = 20
"""Column names in a message."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a file are read: the shape, and the column of each part."""

    shape: str
    columns: dict[str, str]
    """Part (`instruction`, `answer`, `messages`, …) → column, also for optional parts that no row has had so far."""
    required: frozenset[str] = frozenset()
    """The columns without which a row has another shape."""


@dataclass(frozen=True, slots=True)
class _Form:
    """A known shape: its parts with their usual columns."""

    required: dict[str, str]
    optional: dict[str, str]
    is_usual: bool = True
    """Named where columns fit no shape; the others would only lengthen that list."""


_ALWAYS = {"system": "system", "weight": "weight"}
_FOR_TEMPLATE = {"tools": "tools", "documents": "documents", "chat_template_kwargs": "chat_template_kwargs"}
_EARLIER = {**_ALWAYS, "history": "history"}

# In this order they are tried when the shape is `auto`: the more telling columns first.
FORMS: dict[str, _Form] = {
    "messages": _Form({"messages": "messages"}, {**_ALWAYS, **_FOR_TEMPLATE}),
    "sharegpt": _Form({"messages": "conversations"}, {**_ALWAYS, **_FOR_TEMPLATE}),
    "alpaca": _Form({"instruction": "instruction", "output": "output"}, {"input": "input", **_EARLIER}),
    "dolly": _Form({"instruction": "instruction", "output": "response"}, {"input": "context", **_EARLIER}),
    "question_answer": _Form({"question": "question", "answer": "answer"}, {"input": "context", **_EARLIER}),
    "prompt_completion": _Form({"prompt": "prompt", "completion": "completion"}, {**_ALWAYS, **_FOR_TEMPLATE}),
    "prompt_response": _Form({"prompt": "prompt", "completion": "response"}, {**_EARLIER, **_FOR_TEMPLATE}),
    "input_output": _Form({"prompt": "input", "completion": "output"}, _EARLIER),
    "question_response": _Form({"question": "question", "answer": "response"}, {"input": "context", **_EARLIER}, False),
    "query_response": _Form({"prompt": "query", "completion": "response"}, {**_EARLIER, **_FOR_TEMPLATE}, False),
    "inputs_targets": _Form({"prompt": "inputs", "completion": "targets"}, _EARLIER, False),
    "input_target": _Form({"prompt": "input", "completion": "target"}, _EARLIER, False),
    "problem_solution": _Form({"question": "problem", "answer": "solution"}, _EARLIER, False),
    "user_assistant": _Form({"prompt": "user", "completion": "assistant"}, _EARLIER, False),
    "text": _Form({"text": "text"}, {"weight": "weight"}),
}
ALIASES = {
    "conversations": ("conversation", "dialogue", "dialog", "contents"),
    "system": ("system_prompt", "system_message", "systeminstruction", "system_instruction"),
    "tools": ("functions",),
}
"""Column → what else it is called: taken where it is not there itself."""
PARTS = sorted({part for form in FORMS.values() for part in (*form.required, *form.optional)})

PREFERENCE = ("chosen", "rejected")
PREFERENCES = (PREFERENCE, ("preferred_output", "non_preferred_output"))
COMPANIONS = frozenset(
    {"label", "labels", "summary", "highlights", "translation", "target", "targets", "output", "answer", "response"}
    | {"completion", "reply", "code", "question", "role", "parent_id"}
)
"""Beside a column `text`: classes, answers, or what makes a row one message of many. Such texts are no texts to continue."""
CHOICES = ("choices", "options")
"""Beside a question: the answers to choose from, without which it cannot be answered."""


def find_layout(found: Iterable[str], *, shape: str = "auto", columns: Mapping[str, str] | None = None) -> Layout:
    """The layout that the columns `found` have, or that a preset asks for. Names match whatever their case.

    Raises:
        DataError: unknown part names, named columns that are not there, or columns that fit no known shape.
    """
    there = {name.strip().lower(): name for name in sorted(found, reverse=True)}
    named = dict(columns or {})
    _check_named(named, there)
    candidates = FORMS if shape == "auto" else {shape: FORMS[shape]}
    for name, form in candidates.items():
        wanted = {part: named.get(part, _there(column, there)) for part, column in form.required.items()}
        fits = all(column.lower() in there for column in wanted.values())
        is_asked_for = shape != "auto" or bool(named)
        if fits and set(named) <= {*form.required, *form.optional} and (is_asked_for or not _is_companied(name, there)):
            if "question" in form.required and not is_asked_for:
                _check_choices(there)
            parts = wanted | {part: named.get(part, _there(column, there)) for part, column in form.optional.items()}
            actual = {part: there.get(column.lower(), column) for part, column in parts.items()}
            return Layout(name, actual, frozenset(actual[part] for part in wanted))
    raise DataError(_misfit(there, candidates, shape))


def with_cases(layout: Layout, found: Iterable[str]) -> Layout:
    """The layout for a row that writes a column in another case than the rows from which the layout was found."""
    there = {name.strip().lower(): name for name in found}
    columns = layout.columns
    cased = {
        part: there[column.lower()]
        for part, column in columns.items()
        if column.lower() in there and column not in there.values()
    }
    return replace(layout, columns=columns | cased) if cased else layout


def _there(column: str, there: Mapping[str, str]) -> str:
    """The column, or what it is called here."""
    return column if column in there else next((other for other in ALIASES.get(column, ()) if other in there), column)


def _is_companied(name: str, there: Mapping[str, str]) -> bool:
    return name == "text" and bool(COMPANIONS & there.keys())


def _check_choices(there: Mapping[str, str]) -> None:
    found = next((there[name] for name in CHOICES if name in there), "")
    if found:
        raise DataError(
            f"its column {found} holds the answers to choose from, which the model would never see: write them into the "
            "question, and the answer as text; if they stand there already, name the columns: "
            "--columns question=question,answer=answer"
        )


def _check_named(named: Mapping[str, str], there: Mapping[str, str]) -> None:
    for part, column in named.items():
        if part not in PARTS:
            raise DataError(f"columns.{part}: unknown part{suggest(part, PARTS)}; parts are {', '.join(PARTS)}")
        if column.lower() not in there:
            raise DataError(
                f"columns.{part}: there is no column {column!r}{suggest(column, sorted(there.values()))}; "
                f"found {list_names(there.values())}"
            )


def list_names(names: Iterable[str]) -> str:
    """Column names for people, at most MOST_LISTED of them."""
    listed = sorted(names)
    more = f" and {len(listed) - MOST_LISTED:,} more" if len(listed) > MOST_LISTED else ""
    return (", ".join(name[:60] or "(no name)" for name in listed[:MOST_LISTED]) or "none") + more


def _misfit(there: Mapping[str, str], candidates: Mapping[str, _Form], shape: str) -> str:
    if pair := next((pair for pair in PREFERENCES if there.keys() >= set(pair)), None):
        return (
            f"its columns {' and '.join(pair)} are preference data, for DPO or a reward model; this trains on one answer for "
            f"each question: to train on the {pair[0]} ones, name them: {_chosen(pair[0], there)}"
        )
    fits = "no known shape" if shape == "auto" else f"not the shape {shape}"
    usual = ((name, form) for name, form in candidates.items() if form.is_usual or shape != "auto")
    known = " · ".join(f"{name} ({', '.join(form.required.values())})" for name, form in usual)
    return (
        f"its columns fit {fits}: found {list_names(there.values())}{_nearest(there, candidates)}; needed: {known}; "
        f"or name the columns: --columns {_lone_text(there)}, or `columns:` in a preset (a file in config/datasets)"
    )


def _chosen(column: str, there: Mapping[str, str]) -> str:
    """How the better answers of preference data are named."""
    asked = next((there[name] for name in ("prompt", "question", "instruction", "input") if name in there), "")
    if asked:
        return f"--columns prompt={asked},completion={there[column]}"
    return (
        f"--columns messages={there[column]} where each is a list of messages, --columns text={there[column]} if a text"
    )


def _lone_text(there: Mapping[str, str]) -> str:
    """The remedy for columns that fit no shape: a single one, or a text beside others, can be learned as it is."""
    only = there.get("text", next(iter(there.values()), "")) if len(there) == 1 or "text" in there else ""
    return f"text={only} to learn it as it stands, PART=COLUMN,…" if only else "PART=COLUMN,…"


def _nearest(there: Mapping[str, str], candidates: Mapping[str, _Form]) -> str:
    """What a column that is nearly a known one was meant to be."""
    usual = sorted({column for form in candidates.values() for column in form.required.values()})
    guesses = [
        f"{actual[:60]!r}{suggest(name, usual)}"
        for name, actual in sorted(there.items())[:MOST_LISTED]
        if name not in usual
    ]
    near = [guess for guess in guesses if "did you mean" in guess]
    return f" ({'; '.join(near)})" if near else ""
