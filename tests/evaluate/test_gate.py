from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.evaluate.gate import difference, judge, tells

WRONG, RIGHT = [0.0] * 32, [1.0] * 32


def some(right: int, of: int = 32) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)


@pytest.mark.parametrize(
    ("base", "tuned", "least", "passed", "words"),
    [
        pytest.param(WRONG, RIGHT, 0.0, True, "passed: the tuned model is better: score 0.0% → 100.0%", id="better"),
        pytest.param(WRONG, WRONG, 0.0, False, "not passed: no better than the base model", id="0 against 0"),
        pytest.param(WRONG, WRONG, -0.1, False, "not passed: no better than", id="0 against 0, a loss allowed"),
        pytest.param(RIGHT, RIGHT, 0.0, False, "not passed: no better than the base model", id="the same"),
        pytest.param(RIGHT, WRONG, 0.0, False, "not passed: worse than the base model", id="worse"),
        pytest.param(some(10), some(11), 0.0, False, "not passed: 32 samples cannot tell", id="one answer more"),
        pytest.param(some(10), some(9), 0.0, False, "not passed: no better than the base model", id="one answer less"),
        pytest.param(some(4), some(24), 0.2, True, "passed: ", id="more than asked for"),
        pytest.param(some(4), some(12), 0.5, False, "not passed: less of an improvement than", id="not enough"),
        pytest.param(some(4), some(12), 0.2, False, "not passed: 32 samples cannot tell", id="perhaps enough"),
        pytest.param(some(16), some(16), -0.1, True, "passed: the tuned model is not worse than allowed", id="as good"),
        pytest.param(some(20), some(19), -0.2, True, "passed: ", id="a small loss is allowed"),
        pytest.param(some(20), some(4), -0.2, False, "not passed: worse than", id="a large one is not"),
        pytest.param([0.0] * 5, [1.0] * 5, 0.0, False, "not passed: 5 samples cannot tell", id="five never tell"),
        pytest.param([0.0] * 6, [1.0] * 6, 0.0, True, "passed: ", id="six of six tell"),
    ],
)
def test_the_gate(base: list[float], tuned: list[float], least: float, passed: bool, words: str) -> None:
    found = judge(base, tuned, min_improvement=least)
    assert found.passed is passed, found.words
    assert found.words.startswith(words), found.words
    assert "95 % interval" in found.words


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        base = random.random(64) < 0.4
        tuned = np.where(random.random(64) < 0.25, True, base)  # +15 points
        found = difference(base.astype(float).tolist(), tuned.astype(float).tolist())
        hits += found.low <= 0.15 <= found.high
    assert 178 <= hits <= 199


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_the_interval_holds_the_mean_and_is_the_same_each_time(pairs: list[tuple[float, float]]) -> None:
    base, tuned = ([pair[side] for pair in pairs] for side in (0, 1))
    found = difference(base, tuned)
    assert found == difference(base, tuned)
    assert -1 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= 1


@pytest.mark.parametrize(
    ("base", "tuned", "enough"),
    [
        pytest.param(WRONG, some(30), True, id="clear"),
        pytest.param(some(10), some(14), False, id="perhaps"),
        pytest.param(some(4), some(10), False, id="clear at 95 %, not at 99.9 %"),
        pytest.param(WRONG, WRONG, True, id="nothing differs"),
        pytest.param([0.0] * 4, [1.0] * 4, False, id="too few"),
    ],
)
def test_more_samples_are_asked_for_until_it_is_clear(base: list[float], tuned: list[float], enough: bool) -> None:
    assert tells(base, tuned, min_improvement=0.0) is enough
