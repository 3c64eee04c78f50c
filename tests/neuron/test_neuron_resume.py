"""A killed training goes on as if nothing had happened, to the bit; on Trainium only if its stochastic rounding is seeded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.neuron.neuron_harness import RUNS, Training, same_tensors


@pytest.mark.parametrize("name", ["bf16, one core", "bf16, TP=2", "bf16, DP=2", "bf16, PP=2"])
def test_killed_and_resumed_is_uninterrupted(
    name: str, uninterrupted: Callable[[str], Training], new_training: Callable[..., Training]
) -> None:
    whole = uninterrupted(name)
    processes, changes = RUNS[name]
    cut = new_training(**changes)
    cut.kill_after(5, processes=processes)
    cut.run(attempt=2, processes=processes)
    for key in ("loss", "grad_norm", "lr"):
        went_on = cut.values(key, attempt=2)
        assert min(went_on) == 5
        assert went_on == {step: value for step, value in whole.values(key).items() if step > 4}
    assert same_tensors(cut.checkpoint(8), whole.checkpoint(8))


@pytest.mark.parametrize("processes", [1, 4])
def test_a_checkpoint_of_two_replicas_goes_on_with_another_number(
    processes: int, uninterrupted: Callable[[str], Training], tmp_path: Path
) -> None:
    two = uninterrupted("bf16, DP=2")
    other = two.fork(tmp_path / "other", step=4)
    other.run(attempt=2, processes=processes)
    for key in ("loss", "grad_norm"):
        expected, found = two.values(key), other.values(key, attempt=2)
        assert list(found) == [5, 6, 7, 8]
        worst = max(abs(found[step] - expected[step]) / expected[step] for step in found)
        print(f"largest relative difference of {key} with {processes} processes: {worst:.1e}")
        assert worst < 1e-3
