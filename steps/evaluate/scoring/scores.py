"""How good an answer is against its reference: functions of two texts.

Called by `measure`. Which score a data set uses is said in its preset or in `evaluation.score`, or found by `prepare` from its
answers. Thinking before an answer is left out on both sides, and a reference scores 1 against itself whatever it looks like.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from steps.evaluate.scoring.numbers import final_number
from steps.evaluate.scoring.own_score import load_own
from steps.evaluate.scoring.reasoning import after_thinking

UNBROKEN = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Scripts written without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han."""
MISSING = object()
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
    """The answer's score by the score of this name, or by the `module:function` that it names.

    Raises:
        KeyError: no score has that name.
        ConfigError: the function cannot be loaded, failed, or gave no number from 0 to 1.
    """
    if kept := after_thinking(reference).answer:
        answer, reference = after_thinking(answer).answer, kept
    if ":" in name:
        value = load_own(name)(answer, reference)
        return Score(value, exact=value == 1)
    score = SCORES[name](answer, reference)
    return replace(score, value=1.0, exact=True) if answer.split() == reference.split() else score


def exact_match(answer: str, reference: str) -> Score:
    """1 where the texts are the same but for white space."""
    same = answer.split() == reference.split()
    return Score(float(same), exact=same)


def json_fields(answer: str, reference: str) -> Score:
    """Share of the fields that both have with equal values, of all fields that either has.

    Nested fields count one by one. The whole answer has to be JSON (in a code fence, if it likes), an object where the reference
    is one. A reference that is no JSON is compared as text.
    """
    expected, found = read_json(reference), read_json(answer)
    valid = found is not MISSING and (isinstance(found, dict) or not isinstance(expected, dict))
    if expected is MISSING or not valid:
        same = expected is MISSING and answer.split() == reference.split()
        return Score(float(same), exact=same, valid=valid)
    ours, theirs = dict(_fields(found)), dict(_fields(expected))
    right = sum(_equal(ours[path], theirs[path]) for path in ours.keys() & theirs.keys())
    every = len(ours.keys() | theirs.keys())
    value = right / every if every else 1.0
    return Score(value, exact=right == every, valid=True)


def last_number(answer: str, reference: str) -> Score:
    """1 where the results are equal as numbers: see `numbers.final_number`."""
    found, expected = final_number(answer), final_number(reference)
    same = found is not None and expected is not None and found.equals(expected)
    return Score(float(same), exact=same, valid=found is not None)


def rouge_l(answer: str, reference: str) -> Score:
    """F-measure of the longest common subsequence of words (rouge-score, without stemming); of characters where a script has no
    spaces between words."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
    value = float(scorer.score(reference, answer)["rougeL"].fmeasure)
    return Score(value, exact=answer.split() == reference.split())


class _Words:
    """rouge-score's own words, but of any script: it knows a-z and 0-9 only and would give every Greek answer 0."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def words(text: str) -> list[str]:
    """Runs of letters, digits and the marks on them, in lower case; each character by itself in scripts without spaces."""
    found: list[str] = []
    is_open = False
    for sign in unicodedata.normalize("NFC", text.lower()):
        kind = unicodedata.category(sign)[0]
        if kind == "M" and found and is_open:
            found[-1] += sign
        elif kind in "LN" and UNBROKEN.match(sign):
            found.append(sign)
            is_open = True
        elif kind in "LN":
            if is_open and not UNBROKEN.match(found[-1]):
                found[-1] += sign
            else:
                found.append(sign)
            is_open = True
        else:
            is_open = False
    return found


SCORES: Mapping[str, Callable[[str, str], Score]] = {
    "exact_match": exact_match,
    "json_fields": json_fields,
    "last_number": last_number,
    "rouge_l": rouge_l,
}

VALID_FORMS: Mapping[str, str] = {"json_fields": "valid JSON", "last_number": "with a number"}
"""What `Score.valid` means, in words."""


def read_json(text: str) -> Any:
    """The JSON value that is the whole text, or MISSING. NaN and its like are not JSON."""
    stripped = text.strip()
    fenced = FENCE.match(stripped)
    try:
        return json.loads(fenced[1] if fenced else stripped, parse_constant=_refuse)
    except (ValueError, RecursionError):  # a model can open brackets without end
        return MISSING


def result_number(text: str) -> Fraction | None:
    """The number that a text ends in, as a value."""
    number = final_number(text)
    return number.value if number else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fields(value: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(path, value) of every leaf; an empty object or list is a leaf, but for an empty object that is the whole."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [] if value == {} else [((), value)]
    while waiting:  # no recursion: JSON may be nested as deep as Python's own reader goes
        path, item = waiting.pop()
        if isinstance(item, dict) and item:
            waiting += [((*path, key), inner) for key, inner in item.items()]
        elif isinstance(item, list) and item:
            waiting += [((*path, place), inner) for place, inner in enumerate(item)]
        else:
            yield path, item


def _equal(left: Any, right: Any) -> bool:
    """Python takes True for 1; JSON does not."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)
