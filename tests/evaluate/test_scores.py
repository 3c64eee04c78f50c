from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.evaluate.scoring.scores import SCORES, VALID_FORMS, score_answer, words

ORDER = '{"name": "Ann", "items": [{"n": 2}, {"n": 3}], "paid": true}'


@pytest.mark.parametrize(
    ("answer", "value", "exact", "valid"),
    [
        pytest.param(ORDER, 1.0, True, True, id="the same text"),
        pytest.param(
            '{"paid":true,"items":[{"n":2},{"n":3}],"name":"Ann"}', 1.0, True, True, id="keys in another order"
        ),
        pytest.param(f"```json\n{ORDER}\n```", 1.0, True, True, id="in a code fence"),
        pytest.param('{"name": "Bob", "items": [{"n": 2}, {"n": 3}], "paid": true}', 0.75, False, True, id="one wrong"),
        pytest.param('{"name": "Ann", "items": [{"n": 2}], "paid": true}', 0.75, False, True, id="one missing"),
        pytest.param(ORDER[:-1] + ', "more": 1}', 0.8, False, True, id="one too many"),
        pytest.param(ORDER.replace("true", "1"), 0.75, False, True, id="1 is not true"),
        pytest.param(ORDER.replace("2", "2.0"), 1.0, True, True, id="2.0 is 2"),
        pytest.param("{}", 0.0, False, True, id="an empty object"),
        pytest.param(f"Here it is: {ORDER}", 0.0, False, False, id="text around it"),
        pytest.param(ORDER[:-1], 0.0, False, False, id="cut off"),
        pytest.param('["Ann"]', 0.0, False, False, id="a list"),
        pytest.param('{"name": NaN}', 0.0, False, False, id="NaN is no JSON"),
        pytest.param("[" * 100_000, 0.0, False, False, id="brackets without end"),
        pytest.param("", 0.0, False, False, id="nothing"),
    ],
)
def test_json_fields_counts_the_fields_that_agree(answer: str, value: float, exact: bool, valid: bool) -> None:
    score = score_answer("json_fields", answer, ORDER)
    assert (score.value, score.exact, score.valid) == (pytest.approx(value), exact, valid)


@pytest.mark.parametrize(
    ("name", "answer", "reference", "value", "exact", "valid"),
    [
        pytest.param("last_number", "I think 42.0", "6 * 7\n#### 42", 1.0, True, True, id="equal numbers"),
        pytest.param("last_number", "43", "#### 42", 0.0, False, True, id="another number"),
        pytest.param("last_number", "many", "#### 42", 0.0, False, False, id="no number"),
        pytest.param("last_number", "many", "none", 0.0, False, False, id="no number to compare with"),
        pytest.param("last_number", "50 %", "0.5", 1.0, True, True, id="a share in percent"),
        pytest.param("last_number", "50 %", "0.5 %", 0.0, False, True, id="both in percent"),
        pytest.param("last_number", "\\boxed{\\frac{1}{2}}", "it is 0,5 €", 1.0, True, True, id="a box and a comma"),
        pytest.param("json_fields", "[1, 2]", "[1, 3]", 0.5, False, True, id="a list of JSON"),
        pytest.param("json_fields", "no JSON", "other words", 0.0, False, False, id="a reference that is no JSON"),
        pytest.param("rouge_l", "我们去北京", "我们去上海", 0.6, False, None, id="rouge, Chinese by character"),
        pytest.param("rouge_l", "東京へ行く", "大阪へ行く", 0.6, False, None, id="rouge, Japanese by character"),
        pytest.param("rouge_l", "แมวกินปลา", "แมวกินนม", 2 / 3, False, None, id="rouge, Thai by character"),
        pytest.param("exact_match", " a  b\n", "a b", 1.0, True, None, id="white space does not count"),
        pytest.param("exact_match", "A b", "a b", 0.0, False, None, id="case counts"),
        pytest.param("rouge_l", "the cat sat", "the cat sat", 1.0, True, None, id="rouge, same"),
        pytest.param("rouge_l", "the dog sat", "the cat sat", 2 / 3, False, None, id="rouge, one word off"),
        pytest.param("rouge_l", "η γάτα κοιμάται", "η γάτα τρώει", 2 / 3, False, None, id="rouge, Greek"),
        pytest.param("rouge_l", "", "the cat sat", 0.0, False, None, id="rouge, nothing said"),
    ],
)
def test_scores(name: str, answer: str, reference: str, value: float, exact: bool, valid: bool | None) -> None:
    score = score_answer(name, answer, reference)
    assert (score.value, score.exact, score.valid) == (pytest.approx(value), exact, valid)


def test_rouge_l_is_rouge_scores_own_on_ascii() -> None:
    from rouge_score import rouge_scorer

    answer, reference = "It's 3.5 km; the well-known_path's END", "it is 3 km, the path's end is well known"
    own = rouge_scorer.RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert score_answer("rouge_l", answer, reference).value == pytest.approx(own)


@pytest.mark.parametrize("name", SCORES)
@given(answer=st.text(), reference=st.text() | st.dictionaries(st.text(), st.integers()).map(json.dumps))
def test_a_score_lies_between_0_and_1_whatever_was_said(name: str, answer: str, reference: str) -> None:
    score = score_answer(name, answer, reference)
    assert 0 <= score.value <= 1
    assert not math.isnan(score.value)
    assert (score.valid is not None) == (name in VALID_FORMS)


leaves = st.none() | st.booleans() | st.integers() | st.text()


@given(st.dictionaries(st.text(), st.recursive(leaves, st.lists, max_leaves=8), max_size=8))
def test_every_json_object_agrees_with_itself(value: dict[str, object]) -> None:
    text = json.dumps(value)
    assert score_answer("json_fields", text, text).exact


def test_words_keep_their_marks() -> None:
    assert words("Привет, हिन्दी naïve über_x") == ["привет", "हिन्दी", "naïve", "über", "x"]
    assert words("GPT4用中文") == ["gpt4", "用", "中", "文"]


def test_json_nested_as_deep_as_can_be_read_is_compared() -> None:
    deep = "[" * 900 + "1" + "]" * 900
    assert score_answer("json_fields", deep, deep.replace("1", "2")).value == 0.0


odd = st.sampled_from(["", "😀", "!!!", "{broken", "NaN", '{"a": NaN}', "<think>", "####", "many", "<think>a</think>"])


@pytest.mark.parametrize("name", SCORES)
@given(text=odd | st.text() | st.dictionaries(st.text(), st.integers()).map(json.dumps))
def test_a_reference_scores_1_against_itself(name: str, text: str) -> None:
    score = score_answer(name, text, text)
    assert (score.value, score.exact) == (1.0, True)
