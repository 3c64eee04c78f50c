"""The optimizer's state is saved by rank and read by any number of ranks; which layouts go on with which."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import pad

from steps.errors import CheckpointError, ConfigError
from steps.train.loop.ranks import Ranks
from steps.train.neuron.backend import why_not
from steps.train.neuron.ranks import NeuronRanks, by_replica
from steps.train.neuron.state import OptimizerState, Place
from tests.train.neuron.test_layout import make_spec

SHAPES = {"a": (5, 3), "b": (4,), "c": (1, 2)}


class Zero:
    """Cuts parameters over replicas as torch_xla's ZeroRedundancyOptimizer does: dimension 0, padded."""

    def __init__(self, parameters: list[Any], rank: int, size: int) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": 0.5}]
        self._rank, self._size = rank, size
        parts = [torch.nn.Parameter(self._shard_tensor(item.data.float()).clone()) for item in parameters]
        self.base_optimizer = torch.optim.AdamW(parts, lr=0.5)

    def _shard_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        missing = -tensor.shape[0] % self._size
        return pad(tensor, [0, 0] * (tensor.dim() - 1) + [0, missing]).chunk(self._size)[self._rank]


def make_parameters(dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in SHAPES.items()}


def make_zero(rank: int, size: int) -> tuple[Zero, dict[str, Any], OptimizerState, Any]:
    parameters = make_parameters(torch.bfloat16)
    zero = Zero(list(parameters.values()), rank, size)
    names = {id(item): name for name, item in parameters.items()}
    state = OptimizerState(zero, names, Place(rank, 0, size))
    return zero, parameters, state, torch.optim.lr_scheduler.LambdaLR(zero.base_optimizer, lambda step: 1 / (1 + step))


def train(zero: Zero, scheduler: Any, steps: int) -> None:
    for step in range(steps):
        for parameter, part in zip(
            zero.param_groups[0]["params"], zero.base_optimizer.param_groups[0]["params"], strict=True
        ):
            torch.manual_seed(step)
            part.grad = zero._shard_tensor(torch.randn(parameter.shape))
        zero.base_optimizer.step()
        scheduler.step()


def joined(states: list[OptimizerState], key: str) -> dict[str, torch.Tensor]:
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        held = [list(state)[number] for state in states]
        parts = [item.part.data if key == "part" else item.state[key] for item in held]
        found[name] = torch.cat(parts)[: shape[0]]
    return found


@pytest.mark.parametrize(("saved_by", "read_by"), [(1, 1), (2, 2), (2, 1), (2, 3), (3, 2), (4, 1)])
def test_any_number_of_replicas_reads_what_another_saved(saved_by: int, read_by: int, tmp_path: Path) -> None:
    old = [make_zero(rank, saved_by) for rank in range(saved_by)]
    for rank, (zero, _, state, scheduler) in enumerate(old):
        train(zero, scheduler, 3)
        state.save(tmp_path, scheduler, writes_numbers=rank == 0)
    weights = {name: torch.full(shape, 7.0, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    new = [make_zero(rank, read_by) for rank in range(read_by)]
    for zero, parameters, state, scheduler in new:
        state.restore(tmp_path, scheduler, weights)
        assert all(torch.equal(parameters[name], weights[name]) for name in SHAPES)
        assert scheduler.get_last_lr() == old[0][3].get_last_lr()
        assert scheduler.last_epoch == 3
        assert {int(held.state["step"]) for held in state} == {3}
        assert zero.param_groups[0]["lr"] == 0.5
    for key in ("exp_avg", "exp_avg_sq", "part"):
        before, after = (joined([item[2] for item in world], key) for world in (old, new))
        assert all(torch.equal(before[name], after[name]) for name in SHAPES), key


def make_plain() -> tuple[torch.optim.AdamW, OptimizerState, Any]:
    parameters = make_parameters(torch.float32)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    for item in parameters.values():
        item.grad = torch.ones_like(item)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    state = OptimizerState(optimizer, {id(item): name for name, item in parameters.items()}, Place(0, 0, 1))
    return optimizer, state, scheduler


def test_plain_adamw_is_saved_whole(tmp_path: Path) -> None:
    _, state, scheduler = make_plain()
    state.save(tmp_path, scheduler, writes_numbers=True)
    weights = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    _, again, scheduler = make_plain()
    again.restore(tmp_path, scheduler, weights)
    assert all(torch.equal(held.state["exp_avg"], torch.full(SHAPES[held.name], 0.1)) for held in again)
    assert all((held.parameter == 0).all() for held in again)


def test_a_state_of_another_precision_or_training_is_refused(tmp_path: Path) -> None:
    _, state, scheduler = make_plain()
    state.save(tmp_path, scheduler, writes_numbers=True)
    with pytest.raises(CheckpointError, match="another precision"):
        make_zero(0, 1)[2].restore(tmp_path, scheduler, {})
    with pytest.raises(CheckpointError, match="has no weight a"):
        state.restore(tmp_path, scheduler, {})


def test_processes_that_tensor_parallel_does_not_divide_never_meet() -> None:
    with pytest.raises(ConfigError, match=r"launcher\.tensor_parallel: must divide the number of processes, 3, got 2"):
        NeuronRanks.of(Ranks(0, 3), tensor_parallel=2).connect()
    with pytest.raises(ConfigError, match=r"number of processes, 6, got 2 × 2 stages"):
        NeuronRanks.of(Ranks(0, 6), tensor_parallel=2, pipeline_parallel=2).connect()


def test_tensor_parallel_ranks_are_neighbours() -> None:
    places = [Place.of(Ranks(rank=rank, world=4), 2) for rank in range(4)]
    assert [(place.dp, place.tp) for place in places] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert places[3].file(0) == "optimizer-dp00-tp01-pp00.safetensors"


def test_stages_stand_one_after_the_other_and_the_last_knows_the_losses() -> None:
    spec = make_spec(tensor_parallel=2, pipeline_parallel=2)
    places = [Place.of(Ranks(rank=rank, world=8), 2, 2) for rank in range(8)]
    assert [(place.pp, place.dp, place.tp) for place in places] == list(product(range(2), repeat=3))
    assert {place.data_parallel for place in places} == {2}
    assert len({place.file() for place in places}) == 8
    assert [(place.pp, place.dp, place.tp) for place in by_replica(places, spec)] == [(1, 0, 0), (1, 1, 0)]
    assert by_replica(range(4), make_spec(tensor_parallel=2)) == range(0, 4, 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dp": 1, "micro_batch": 4}, None),
        ({"backend": "torch"}, "saved by backend torch"),
        ({"tp": 4}, "saved with tensor parallel 4, this is 2"),
        ({"pp": 2}, "saved with pipeline parallel 2, this is 1"),
    ],
)
def test_which_layouts_go_on_with_a_checkpoint(changes: dict[str, Any], reason: str | None) -> None:
    ours = {"backend": "neuron", "tp": 2, "pp": 1, "dp": 4, "micro_batch": 1}
    found = why_not(ours | changes, ours)
    assert found is None if reason is None else reason in str(found)
