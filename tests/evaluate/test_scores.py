from __future__ import annotations

import json
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.evaluate.scores import SCORES, VALID_FORMS, result_number, score_answer

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
    ("text", "number"),
    [
        pytest.param("so 3 + 4 = 7\n#### 7", "7", id="marked"),
        pytest.param("#### 1,234.50 dollars, or 9 boxes", "1234.5", id="marked, more behind it"),
        pytest.param("#### 1\nno, wait\n#### 2", "2", id="the last mark counts"),
        pytest.param("it is 12, then 30.", "30", id="the last number"),
        pytest.param("$-5", "-5", id="negative"),
        pytest.param("pages 10-20", "20", id="a range is no minus"),
        pytest.param("5 apples #### none", "5", id="nothing behind the mark"),
        pytest.param("a half is .5", "0.5", id="without a leading zero"),
        pytest.param("no idea", None, id="none"),
    ],
)
def test_result_number_is_what_the_text_ends_in(text: str, number: str | None) -> None:
    assert result_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("name", "answer", "reference", "value", "exact", "valid"),
    [
        pytest.param("last_number", "I think 42.0", "6 * 7\n#### 42", 1.0, True, True, id="equal numbers"),
        pytest.param("last_number", "43", "#### 42", 0.0, False, True, id="another number"),
        pytest.param("last_number", "many", "#### 42", 0.0, False, False, id="no number"),
        pytest.param("last_number", "many", "none", 0.0, False, False, id="no number to compare with"),
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
