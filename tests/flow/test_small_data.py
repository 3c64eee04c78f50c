"""A data set of few rows still gives steps to learn in."""

from __future__ import annotations

from typing import Any

import pytest

from steps.flow.small_data import FEW_STEPS, fit_to_data, in_epochs
from steps.prepare.pack import count_steps
from steps.protocol.records import PreparedData
from steps.settings.plan import Plan
from tests.shared.sample_records import plan_of, prepared_of


def small(rows: int, samples: int = 500, **options: Any) -> tuple[Plan, PreparedData]:
    plan = plan_of(**{"dataset": "alpaca", "global_batch": 32, "micro_batch": 1, **options})
    if "global_batch" not in options:
        plan = plan.model_copy(update={"given": tuple(name for name in plan.given if name != "global_batch")})
    steps = count_steps(rows, max_steps=plan.max_steps, epochs=plan.epochs, global_batch=plan.training.global_batch)
    return plan, prepared_of(rows=rows, steps=steps, global_batch=plan.training.global_batch, train_samples=samples)


@pytest.mark.parametrize(
    ("rows", "samples", "batch", "packing"),
    [
        pytest.param(640, 9000, 32, True, id="enough rows"),
        pytest.param(100, 2000, 5, True, id="a smaller batch gives the steps"),
        pytest.param(21, 500, 1, True, id="one row at a time"),
        pytest.param(17, 500, 26, False, id="too few packed rows"),
        pytest.param(1, 30, 1, False, id="very few samples"),
        pytest.param(1, 5, 1, False, id="hardly any"),
    ],
)
def test_the_batch_follows_the_data(rows: int, samples: int, batch: int, packing: bool) -> None:
    plan = fit_to_data(*small(rows, samples))
    assert (plan.training.global_batch, plan.packing) == (batch, packing)
    assert bool(plan.packing_reason) is not packing
    final = rows if packing else samples
    assert count_steps(final, max_steps=0, epochs=plan.epochs, global_batch=batch) >= min(FEW_STEPS, samples)


def test_what_a_person_gave_is_not_changed() -> None:
    for options in ({"global_batch": 32, "packing": "on"}, {"max_steps": 1}):
        plan, prepared = small(17, **options)
        assert fit_to_data(plan, prepared) == plan
    plan = fit_to_data(*small(17, global_batch=32))
    assert (plan.training.global_batch, plan.packing) == (32, False)


def test_every_process_gets_a_whole_micro_batch() -> None:
    plan = fit_to_data(*small(100, processes=2, micro_batch=2))
    assert plan.training.global_batch == 4
    assert plan.accumulation == 1


def test_the_plan_line_says_how_often_the_samples_are_seen() -> None:
    plan = plan_of(dataset="alpaca")
    assert in_epochs(plan, prepared_of(rows=100, steps=30, global_batch=8)) == "2.4 epochs of 1,200 samples"
    rows = prepared_of(rows=8, steps=1, global_batch=8, train_samples=9)
    assert in_epochs(plan, rows).startswith("1 epoch of 9 samples; few steps")
    assert in_epochs(plan_of(dataset="alpaca", max_steps=1), rows) == "1 epoch of 9 samples"
    assert in_epochs(plan_of(dataset="orders"), rows) == "1 epoch of 9 samples"
