"""How good an answer is against its reference: pure functions of two texts.

Called by `stage`. Which score a data set uses is decided in its preset, or by `prepare` from its answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

NUMBER = re.compile(r"(?:(?<![\d)])[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
WORD = re.compile(r"[^\W_]+")
FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Score:
    """One answer's score."""

    value: float
    """0..1"""
    exact: bool
    """Nothing is missing, nothing is wrong."""
    valid: bool | None = None
    """Whether the answer has the form that the score reads; None where every text has."""


def score_answer(name: str, answer: str, reference: str) -> Score:
    """The answer's score by the score of this name.

    Raises:
        KeyError: no score has that name.
    """
    return SCORES[name](answer, reference)


def exact_match(answer: str, reference: str) -> Score:
    """1 where the texts are the same but for white space."""
    same = answer.split() == reference.split()
    return Score(float(same), exact=same)


def json_fields(answer: str, reference: str) -> Score:
    """Share of the fields that both objects have with equal values, of all fields that either has.

    Nested fields count one by one. The whole answer has to be one JSON object (in a code fence, if it likes).
    """
    expected, found = read_object(reference), read_object(answer)
    if found is None or expected is None:
        return Score(0.0, exact=False, valid=found is not None)
    ours, theirs = dict(_fields(found)), dict(_fields(expected))
    right = sum(_equal(ours[path], theirs[path]) for path in ours.keys() & theirs.keys())
    every = len(ours.keys() | theirs.keys())
    value = right / every if every else 1.0
    return Score(value, exact=right == every, valid=True)


def last_number(answer: str, reference: str) -> Score:
    """1 where the results are equal as numbers: what follows the last `####`, else the last number in the text."""
    found, expected = result_number(answer), result_number(reference)
    same = found is not None and found == expected
    return Score(float(same), exact=same, valid=found is not None)


def rouge_l(answer: str, reference: str) -> Score:
    """F-measure of the longest common subsequence of words (rouge-score, without stemming)."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
    value = float(scorer.score(reference, answer)["rougeL"].fmeasure)
    return Score(value, exact=answer.split() == reference.split())


class _Words:
    """rouge-score's own words, but of any script: it knows a-z and 0-9 only and would give every Greek answer 0."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


SCORES: Mapping[str, Callable[[str, str], Score]] = {
    "exact_match": exact_match,
    "json_fields": json_fields,
    "last_number": last_number,
    "rouge_l": rouge_l,
}

VALID_FORMS: Mapping[str, str] = {"json_fields": "valid JSON", "last_number": "with a number"}
"""What `Score.valid` means, in words."""


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that is the whole text, or None. NaN and its like are not JSON."""
    stripped = text.strip()
    fenced = FENCE.match(stripped)
    try:
        value = json.loads(fenced[1] if fenced else stripped, parse_constant=_refuse)
    except (ValueError, RecursionError):  # a model can open brackets without end
        return None
    return value if isinstance(value, dict) else None


def result_number(text: str) -> Decimal | None:
    """The number that a text ends in, thousands separators dropped."""
    marked = text.rsplit("####", 1)
    numbers = NUMBER.findall(marked[1])[:1] if len(marked) == 2 else []
    numbers = numbers or NUMBER.findall(text)[-1:]
    return Decimal(numbers[0].replace(",", "")) if numbers else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fields(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    """(path, value) of every leaf; an empty object or list is a leaf."""
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _fields(item, (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for place, item in enumerate(value) for leaf in _fields(item, (*path, place))]
    return [] if value == {} and not path else [(path, value)]


def _equal(left: Any, right: Any) -> bool:
    """Python takes True for 1; JSON does not."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
