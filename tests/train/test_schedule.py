"""The learning rate of each step."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from steps.train.loop.schedule import follow, make_scheduler, rate_factor, warmup_steps
from steps.train.spec import TrainSpec
from tests.train.train_harness import Training, Trainings


def spec_of(trainings: Trainings, **changes: object) -> TrainSpec:
    return trainings.make("schedule", **changes).spec


@pytest.mark.parametrize("steps", [1, 2, 3, 17, 400])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
def test_every_step_has_a_rate_above_zero_and_one_has_all_of_it(
    trainings: Trainings, steps: int, ratio: float, scheduler: str
) -> None:
    spec = spec_of(trainings, steps=steps, warmup_ratio=ratio, scheduler=scheduler)
    rates = [rate_factor(step, spec=spec) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) == rates[warmup_steps(ratio, steps)] == 1.0
    rising, falling = rates[: warmup_steps(ratio, steps) + 1], rates[warmup_steps(ratio, steps) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_warm_up_is_a_share_of_the_steps_and_never_all() -> None:
    assert [warmup_steps(0.1, steps) for steps in (1, 2, 10, 11, 400)] == [0, 1, 1, 2, 40]
    assert warmup_steps(0.99, 10) == 9


def test_the_shapes_after_warm_up(trainings: Trainings) -> None:
    middle = {
        name: rate_factor(5, spec=spec_of(trainings, steps=10, warmup_ratio=0, scheduler=name))
        for name in ("cosine", "linear", "constant")
    }
    assert middle == pytest.approx({"cosine": 0.5, "linear": 0.5, "constant": 1.0})
    quarter = rate_factor(2, spec=spec_of(trainings, steps=8, warmup_ratio=0, scheduler="cosine"))
    assert quarter == pytest.approx(0.5 + math.sqrt(0.5) / 2)


def test_a_librarys_scheduler_follows_the_same_rates(trainings: Trainings) -> None:
    spec = spec_of(trainings, steps=6, warmup_ratio=0.4)
    seen: list[list[float]] = []
    for ours in (True, False):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        scheduler = make_scheduler(optimizer, spec) if ours else LambdaLR(optimizer, lambda step: 0.0)
        if not ours:
            follow(scheduler, spec)
        rates = []
        for _ in range(spec.steps):
            rates.append(optimizer.param_groups[0]["lr"])
            assert scheduler.get_last_lr() == rates[-1:]
            optimizer.step()
            scheduler.step()
        seen.append(rates)
    assert seen[0] == seen[1]
    assert min(seen[0]) > 0


@pytest.mark.whole
@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_very_few_steps_trains_each_of_them(trainings: Trainings, steps: int) -> None:
    from safetensors.torch import load_file

    run: Training = trainings.make(f"short-{steps}", steps=steps)
    assert run.run() == 0, run.log()
    assert [event.data["lr"] > 0 for event in run.events(kind="step")] == [True] * steps
    weights = load_file(run.result / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for tensor in weights.values())
