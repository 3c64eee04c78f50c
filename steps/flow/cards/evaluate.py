"""A report and its samples → what the evaluate card says: the verdict, the rows that changed, what is still wrong. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from steps.evaluate.gate import LEAST_INFORMATIVE
from steps.flow.terminal import number
from steps.plain_text import counted, shorten
from steps.protocol.records import Report

Outcome = Literal["better", "worse", "same", "unsure"]
TEXT_LIMIT = 2000
"""Characters of one text; samples.jsonl has it whole."""
FIGURES = re.compile(r": score [^()]*\([^()]* interval [^()]*\)")
"""In a gate's words, what the headline says as well."""
SCORE_NAMES = {"rouge_l": "ROUGE-L", "json_fields": "JSON fields"}
"""Where a score's name without its underscores would not do."""
LEAST_PREFIX = 24
"""Shorter beginnings that all prompts share are not worth a box of their own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to one prompt."""

    text: str
    score: float
    is_right: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One held-out sample."""

    prompt: str
    reference: str
    base: Answer
    tuned: Answer

    @property
    def gain(self) -> float:
        """How much better the tuned model's answer is."""
        return self.tuned.score - self.base.score


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one kind, as many as are shown."""

    title: str
    rows: Sequence[Row]
    count: int
    """Of all rows of this kind."""


def view(
    *,
    title: str,
    report: Report,
    samples: Sequence[Mapping[str, Any]],
    lineage: Mapping[str, object],
    shown: int,
    links: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that `evaluate.html` prints; at most `shown` rows of each kind."""
    rows = [read_row(sample) for sample in samples]
    prefix = common_prefix([row.prompt for row in rows])
    return {
        "title": title,
        "verdict": verdict(report),
        "headline": headline(report),
        "interval": interval_words(report),
        "tone": tone(report),
        "gate": gate_words(report),
        "notes": notes(report),
        "score_name": score_words(report),
        "bars": [("base model", report.base_score), ("tuned model", report.tuned_score)],
        "losses": [
            ("loss on held-out samples", f"{report.base_loss:.4f}", f"{report.tuned_loss:.4f}"),
            ("perplexity", f"{report.base_perplexity:,.2f}", f"{report.tuned_perplexity:,.2f}"),
            *by_source(report),
        ],
        "samples": counted(report.samples, "held-out sample"),
        "prefix": prefix,
        "groups": groups(rows, shown),
        "cut": lambda text: shorten(text, TEXT_LIMIT),
        "rest": lambda prompt: prompt[len(prefix) :],
        "lineage": {key: str(value) for key, value in lineage.items()},
        "links": dict(links or {}),
    }


def outcome(report: Report) -> Outcome:
    """What the samples tell of the tuned model's answers: by their interval, where the report has one, and not by the means."""
    if report.tuned_score == report.base_score:
        return "same"
    limits = interval(report)
    is_open = limits is not None and limits[0] <= 0 <= limits[1]
    if is_open or number(report.details.get("differing", LEAST_INFORMATIVE)) < LEAST_INFORMATIVE:
        return "unsure"
    return "better" if report.tuned_score > report.base_score else "worse"


def verdict(report: Report) -> str:
    """One phrase: is the tuned model better?"""
    found = outcome(report)
    if found == "unsure":
        better = report.tuned_score > report.base_score
        return f"{'Better' if better else 'Worse'} than the base model, but the samples are too few to be sure"
    return {"same": "No better", "better": "Better", "worse": "Worse"}[found] + " than the base model"


def headline(report: Report) -> str:
    """`1.8% → 96.9%`."""
    return f"{report.base_score:.1%} → {report.tuned_score:.1%}"


def interval_words(report: Report) -> str:
    """The interval of the difference, where the report has one."""
    limits = interval(report)
    if limits == (0, 0):  # no answer's score has changed
        return ""
    return f"difference {100 * limits[0]:+.1f} to {100 * limits[1]:+.1f} points (95% interval)" if limits else ""


def tone(report: Report) -> str:
    """How the verdict is coloured: good, even or bad."""
    found = outcome(report)
    if found == "better":
        return "good" if report.gate_passed else "even"
    return "even" if found == "unsure" or (found == "same" and report.gate_passed) else "bad"


def gate_words(report: Report) -> str:
    """The gate's rule and outcome, without the figures of the headline.

    Where both models score nothing there is nothing that could be passed.
    """
    if report.gate_passed and report.tuned_score == report.base_score == 0:
        return "Gate: no better than the base model, since both score 0.0%."
    return sentence(f"Gate {FIGURES.sub('', report.gate)}")


def interval(report: Report) -> tuple[float, float] | None:
    """The limits of the difference in score, where the report has them (reports of earlier versions have none)."""
    found = report.details.get("interval")
    if not isinstance(found, list | tuple) or len(found) != 2:
        return None
    return number(found[0]), number(found[1])


def notes(report: Report) -> list[str]:
    """What a reader of the score should know."""
    words = report.details.get("words")
    found = [sentence(words[:1].upper() + words[1:])] if isinstance(words, str) and words else []
    return [*found, *(cut_answers(report) if "answers cut" not in str(words) else [])]


def cut_answers(report: Report) -> list[str]:
    """How many answers ended at the length limit, where the report counts them."""
    cut = report.details.get("cut")
    if not isinstance(cut, list | tuple) or len(cut) != 2 or not any(number(item) for item in cut):
        return []
    base, tuned = (int(number(item)) for item in cut)
    return [f"Cut at the length limit: {counted(base, 'answer')} of the base model, {tuned:,} of the tuned one."]


def score_words(report: Report) -> str:
    """The score's name in words."""
    return SCORE_NAMES.get(report.score_name, report.score_name.replace("_", " "))


def by_source(report: Report) -> list[tuple[str, str, str]]:
    """Of a mixture: score and loss of each source, as far as it was measured: (what, base model's, tuned model's)."""
    rows = []
    for part in report.details.get("sources", ()):
        named = SCORE_NAMES.get(part["score_name"], part["score_name"].replace("_", " "))
        words = f"{part['source']}: {named}, {counted(part['samples'], 'sample')}"
        for what, values, shape in ((words, part["score"], ".1%"), (f"{part['source']}: loss", part["loss"], ".4f")):
            if None not in values:
                rows.append((what, format(values[0], shape), format(values[1], shape)))
    return rows


def sentence(words: str) -> str:
    """With a full stop at its end."""
    return words if words.endswith((".", "!", "?")) else f"{words}."


def read_row(sample: Mapping[str, Any]) -> Row:
    """A line of samples.jsonl; what is missing is shown as missing."""
    base, tuned = (
        Answer(
            text_of(sample.get(f"{model}_answer")),
            number(sample.get(f"{model}_score")),
            bool(sample.get(f"{model}_exact", number(sample.get(f"{model}_score")) >= 1)),
        )
        for model in ("base", "tuned")
    )
    return Row(text_of(sample.get("prompt")), text_of(sample.get("reference")), base, tuned)


def text_of(value: object) -> str:
    """A text as it is; anything else as Python writes it."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def groups(rows: Sequence[Row], shown: int) -> list[Group]:
    """What changed first, the worse before the better; then what is still wrong, then what was right before."""
    worse = sorted((row for row in rows if row.gain < 0), key=lambda row: row.gain)
    better = sorted((row for row in rows if row.gain > 0), key=lambda row: -row.gain)
    wrong = [row for row in rows if row.gain == 0 and not row.tuned.is_right]
    right = [row for row in rows if row.gain == 0 and row.tuned.is_right]
    named = (
        ("Worse than before", worse),
        ("Better than before", better),
        ("Still wrong", wrong),
        ("Right before and after", right),
    )
    return [Group(title, found[:shown], len(found)) for title, found in named if found]


def common_prefix(prompts: Sequence[str]) -> str:
    """What all prompts begin with, up to the end of a line or word; empty where it is short, or there is one prompt only."""
    if len(prompts) < 2:
        return ""
    first, last = min(prompts), max(prompts)  # in sorted order what these two share, all share
    shared = first[: next((place for place, sign in enumerate(first) if last[place : place + 1] != sign), len(first))]
    if any(len(prompt) == len(shared) for prompt in prompts):
        shared = shared[:-1]  # of every prompt something is left to show
    ends = [found.end() for found in re.finditer(r"\s+", shared)]
    lines = [found.end() for found in re.finditer(r"\n+", shared)]
    cut = lines[-1] if lines and lines[-1] >= LEAST_PREFIX else ends[-1] if ends else 0
    return shared[:cut] if cut >= LEAST_PREFIX else ""
