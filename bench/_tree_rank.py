"""One rank of `bench tree`: gradients that cost next to nothing, summed by the fixed tree and by DistributedDataParallel in turn.

Started by torchrun: `-m bench._tree_rank OUT VALUES MICRO_BATCHES STEPS`. Rank 0 writes the seconds of every step to OUT.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from steps.train.loop.ranks import Ranks
from steps.train.pytorch.gradients import TreeGradients

TENSORS = 420
"""LoRA's matrices in a model of 30 layers: the same number of values in as many pieces."""


class Cheap(torch.nn.Module):
    """Parameters whose gradients are constant: one write a value, so that nearly all that is left is the sum."""

    def __init__(self, values: int) -> None:
        super().__init__()
        rows = max(1, values // TENSORS)
        self.parts = torch.nn.ParameterList(torch.zeros(rows) for _ in range(TENSORS))

    def forward(self, scale: float) -> torch.Tensor:
        """A loss that is linear in every parameter."""
        return torch.stack([part.sum() for part in self.parts]).sum() * scale


def by_tree(values: int, micro_batches: int, ranks: Ranks) -> Callable[[], None]:
    """A step as the torch backend sums it."""
    model = Cheap(values)
    gradients = TreeGradients(list(model.parameters()), ranks, accumulation=micro_batches)

    def step() -> None:
        for number in range(micro_batches):
            gradients.add(model(number + 1.0))
        gradients.combine(flag=False)

    return step


def by_ddp(values: int, micro_batches: int, ranks: Ranks) -> Callable[[], None]:
    """A step as Trainer does it: into `grad`, and one all-reduce with the last micro-batch."""
    model = Cheap(values)
    wrapped = DistributedDataParallel(model) if ranks.world > 1 else model

    def step() -> None:
        model.zero_grad(set_to_none=True)
        for number in range(micro_batches):
            is_last = number == micro_batches - 1
            with contextlib.nullcontext() if is_last or ranks.world == 1 else wrapped.no_sync():
                wrapped(number + 1.0).backward()

    return step


def main(argv: list[str]) -> int:
    """Measure in turn, the first steps left out."""
    out, values, micro_batches, steps = Path(argv[0]), int(argv[1]), int(argv[2]), int(argv[3])
    torch.set_num_threads(1)
    ranks = Ranks.from_environment(os.environ)
    dist.init_process_group("gloo")
    found: dict[str, list[float]] = {"tree": [], "ddp": []}
    ways = {"tree": by_tree(values, micro_batches, ranks), "ddp": by_ddp(values, micro_batches, ranks)}
    for _ in range(steps + 2):
        for name, step in ways.items():
            dist.barrier()
            begun_s = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - begun_s)
    if ranks.rank == 0:
        out.write_text(json.dumps({name: times[2:] for name, times in found.items()}))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
