from __future__ import annotations

import math
from typing import Any

import pytest

from steps.evaluate import loss
from steps.evaluate.loss import IGNORED, Sample, mean_loss, perplexity
from tests.evaluate.evaluate_data import plain_loss, target_sample, token_rows


@pytest.mark.parametrize("shared", [True, False], ids=["one beginning", "different beginnings"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9], ids=["a loss on all tokens", "on most", "on the last few"])
def test_the_loss_in_batches_equals_the_plain_one(
    loaded: tuple[Any, Any], theirs: Any, monkeypatch: pytest.MonkeyPatch, shared: bool, share: float
) -> None:
    monkeypatch.setattr(loss, "BATCH_TOKENS", 100)
    samples = [target_sample(row, int(share * len(row))) for row in token_rows(shared=shared) if len(row) > 1]
    assert mean_loss(loaded[0], samples) == pytest.approx(plain_loss(theirs, samples), abs=1e-5)


def test_targets_in_several_turns_count_and_nothing_between_them(loaded: tuple[Any, Any], theirs: Any) -> None:
    rows = token_rows()
    samples = [
        Sample(row, [token if 10 <= place < 14 or place >= 18 else IGNORED for place, token in enumerate(row)])
        for row in rows
    ]
    assert mean_loss(loaded[0], samples) == pytest.approx(plain_loss(theirs, samples), abs=1e-5)


def test_a_sample_without_a_target_adds_nothing(loaded: tuple[Any, Any]) -> None:
    with_target, without = target_sample(token_rows()[1], 9), target_sample(token_rows()[2], 99)
    heard: list[int] = []
    found = mean_loss(loaded[0], [without, with_target, without], on_samples=heard.append)
    assert found == pytest.approx(mean_loss(loaded[0], [with_target]), abs=1e-6)
    assert heard == [3]
    assert math.isnan(mean_loss(loaded[0], [without]))


@pytest.mark.parametrize(("nats", "expected"), [(0.0, 1.0), (math.log(5), 5.0), (1e4, math.inf)])
def test_perplexity(nats: float, expected: float) -> None:
    assert perplexity(nats) == pytest.approx(expected)


def test_perplexity_of_nothing_is_nothing() -> None:
    assert math.isnan(perplexity(math.nan))
