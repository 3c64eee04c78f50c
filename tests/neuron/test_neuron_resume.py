"""A killed training goes on as if nothing had happened, to the bit; on Trainium only if its stochastic rounding is seeded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from neuron_harness import Training, same_tensors

LIKE_REAL = {"precision": "bf16", "lora": {"dropout": 0.1}}


@pytest.mark.parametrize(
    ("tensor_parallel", "processes"), [(1, 1), (2, 2), (1, 2)], ids=["one core", "TP=2", "DP=2 under ZeRO-1"]
)
def test_killed_and_resumed_is_uninterrupted(
    tensor_parallel: int, processes: int, new_training: Callable[..., Training]
) -> None:
    whole = new_training("whole", tensor_parallel=tensor_parallel, **LIKE_REAL)
    whole.run(processes=processes)
    cut = new_training("cut", tensor_parallel=tensor_parallel, **LIKE_REAL)
    cut.kill_after(5, processes=processes)
    cut.run(attempt=2, processes=processes)
    for key in ("loss", "grad_norm", "lr"):
        went_on = cut.values(key, attempt=2)
        assert min(went_on) == 5
        assert went_on == {step: value for step, value in whole.values(key).items() if step > 4}
    assert same_tensors(cut.checkpoint(8), whole.checkpoint(8))


def test_a_checkpoint_of_two_replicas_goes_on_with_one_and_with_four(new_training: Callable[..., Training]) -> None:
    two = new_training("run", micro_batch=1, **LIKE_REAL)
    two.kill_after(5, processes=2)
    cut = two.checkpoint(4)
    two.run(attempt=2, processes=2)
    expected = two.values("loss", attempt=2)
    for attempt, processes in ((3, 1), (4, 4)):
        for path in two.spec.place.checkpoints.iterdir():
            if path != cut:
                path.rename(two.spec.place.path / f"gone-{attempt}-{path.name}")
        two.run(attempt=attempt, processes=processes)
        found = two.values("loss", attempt=attempt)
        assert min(found) == 5
        worst = max(abs(found[step] - expected[step]) / expected[step] for step in expected)
        print(f"largest relative difference of a loss with {processes} processes: {worst:.2e}")
        assert worst < 1e-3
