"""The evaluate card's words: verdict, order of the rows, what prompts share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.flow.cards import page
from steps.flow.cards.evaluate import (
    common_prefix,
    cut_answers,
    gate_words,
    groups,
    headline,
    interval_words,
    notes,
    read_row,
    score_words,
    tone,
    verdict,
    view,
)
from tests.flow.cards.samples import row
from tests.shared.sample_records import REPORT


def drawn(samples: list[dict[str, Any]], **changes: Any) -> str:
    report = replace(REPORT, **changes)
    return page.body(
        "evaluate.html", view(title="tiny", report=report, samples=samples, lineage={"base.digest": "b"}, shown=2)
    )


@pytest.mark.parametrize(
    ("base", "tuned", "details", "words"),
    [
        (0.0, 0.9, {}, "Better than the base model"),
        (0.5, 0.4, {}, "Worse than the base model"),
        (0.0, 0.0, {}, "No better than the base model"),
        (0.3, 0.3, {"interval": [0.0, 0.0]}, "No better than the base model"),
        (0.1, 0.2, {"interval": [-0.1, 0.3]}, "Better than the base model, but the samples are too few to be sure"),
        (0.1, 0.2, {"interval": [0.05, 0.15]}, "Better than the base model"),
        (
            0.1,
            0.2,
            {"interval": [0.05, 0.15], "differing": 5},
            "Better than the base model, but the samples are too few to be sure",
        ),
        (0.1, 0.2, {"interval": [0.05, 0.15], "differing": 6}, "Better than the base model"),
        (0.1, 0.2, {"interval": "damaged"}, "Better than the base model"),
    ],
)
def test_the_verdict(base: float, tuned: float, details: dict[str, Any], words: str) -> None:
    assert verdict(replace(REPORT, base_score=base, tuned_score=tuned, details=details)) == words


def test_nothing_against_nothing_is_never_passed() -> None:
    report = replace(REPORT, base_score=0.0, tuned_score=0.0, gate="passed: at least the base model's 0.0%")
    assert "passed" not in gate_words(report)
    assert tone(report) == "even"
    assert gate_words(replace(REPORT, gate="passed: yes")) == "Gate passed: yes."


def test_what_the_headline_says_is_not_said_again() -> None:
    figures = "score 1.8% → 96.9%, a difference of +95.1% (95 % interval +91.0% to +99.0%)"
    report = replace(REPORT, gate=f"passed: the tuned model is better: {figures}; asked for is +5.0%")
    assert gate_words(report) == "Gate passed: the tuned model is better; asked for is +5.0%."
    counted = replace(REPORT, details={"words": "exact match 0/32 → 27/32, answers cut 3/32 → 0/32", "cut": [3, 0]})
    assert notes(counted) == ["Exact match 0/32 → 27/32, answers cut 3/32 → 0/32."]


def test_the_headline_has_its_interval_where_the_report_has_one() -> None:
    report = replace(REPORT, base_score=0.018, tuned_score=0.969)
    assert (headline(report), interval_words(report)) == ("1.8% → 96.9%", "")
    assert (
        interval_words(replace(report, details={"interval": [0.91, 0.99]}))
        == "difference +91.0 to +99.0 points (95% interval)"
    )


def test_scores_have_their_usual_names_and_no_empty_interval() -> None:
    assert score_words(replace(REPORT, score_name="rouge_l")) == "ROUGE-L"
    assert score_words(replace(REPORT, score_name="last_number")) == "last number"
    assert interval_words(replace(REPORT, details={"interval": [0.0, 0.0]})) == ""


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (None, []),
        ([0, 0], []),
        ([1, 0], ["Cut at the length limit: 1 answer of the base model, 0 of the tuned one."]),
        ([3, 2], ["Cut at the length limit: 3 answers of the base model, 2 of the tuned one."]),
    ],
)
def test_cut_answers_are_told(cut: Any, words: list[str]) -> None:
    assert cut_answers(replace(REPORT, details={"cut": cut})) == words


def scored(name: str, base: float, tuned: float) -> dict[str, Any]:
    return row(name, base_score=base, tuned_score=tuned, base_exact=base == 1, tuned_exact=tuned == 1)


def test_changed_rows_come_first_then_failures() -> None:
    samples = [
        scored("right", 1, 1),
        scored("wrong", 0.5, 0.5),
        scored("little", 0, 0.5),
        scored("better", 0, 1),
        scored("worse", 1, 0.5),
    ]
    found = groups([read_row(sample) for sample in samples], 9)
    assert [(group.title, [item.prompt for item in group.rows]) for group in found] == [
        ("Worse than before", ["worse"]),
        ("Better than before", ["better", "little"]),
        ("Still wrong", ["wrong"]),
        ("Right before and after", ["right"]),
    ]


def test_rows_that_are_not_shown_are_counted() -> None:
    text = drawn([scored(f"{number} prompt", 0, 1) for number in range(5)])
    assert "5, 2 of them here; samples.jsonl has all" in text
    assert text.count('class="row"') == 2


def test_a_row_has_a_sign_and_a_score_for_each_model() -> None:
    text = drawn([scored("p", 0.25, 1)])
    assert '<span class="no">✗</span> 0.25' in text
    assert '<span class="yes">✓</span> 1.00' in text


def test_a_row_with_missing_parts_is_shown() -> None:
    text = drawn([{"prompt": None, "base_score": None}, {"tuned_answer": 7, "tuned_score": "x"}])
    assert "(empty)" in text
    assert "7" in text


def test_a_long_answer_is_cut_and_says_so() -> None:
    assert "x … (1 more character)" in drawn([row("x" * 2001)])
    assert "x … (500 more characters)" in drawn([row("x" * 2500)])


def test_what_prompts_share_is_shown_once() -> None:
    begin = "Turn this order into one JSON object.\n\n"
    text = drawn([row("-", prompt=begin + "I want 3 hats."), row("-", prompt=begin + "I want 4 caps.")])
    assert text.count("Turn this order") == 1
    assert "I want 3 hats." in text


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([], ""),
        (["the same long prompt, word by word by word"], ""),
        (["short a", "short b"], ""),
        (["Answer with one single word: cat", "Answer with one single word: car"], "Answer with one single word: "),
        (["Repeat this text exactly: a", "Repeat this text exactly: b"], "Repeat this text exactly: "),
        (["Answer in one word please:\ncat a", "Answer in one word please:\ncat b"], "Answer in one word please:\n"),
        (["Answer with one single word now"] * 2, "Answer with one single word "),
    ],
)
def test_the_shared_beginning(prompts: list[str], shared: str) -> None:
    assert common_prefix(prompts) == shared


@given(st.lists(st.text(alphabet="ab \n", max_size=60), max_size=5))
def test_the_shared_beginning_leaves_something_of_each_prompt(prompts: list[str]) -> None:
    shared = common_prefix(prompts)
    assert all(prompt.startswith(shared) for prompt in prompts)
    assert not shared or all(len(prompt) > len(shared) for prompt in prompts)
