"""Makes torch_xla on CPUs look like a Neuron job of several processes: each is a core, gloo carries the collectives.

For tests only. Imported by `neuron_entry` before anything else. One CPU client of torch_xla's for each process; a collective
copies to the CPU, gathers over its group, computes there and copies back. Everything happens at once, so it shows nothing of the
order of graphs.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch_xla.core.xla_env_vars as xla_env_vars
import torch_xla.core.xla_model as xm
import torch_xla.runtime as xr

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))
PATIENCE = timedelta(seconds=240)
JOB = f"{os.environ.get('TORCHELASTIC_RUN_ID', 'x')}_{os.environ.get('MASTER_PORT', '0')}"
STORE = dist.FileStore(os.path.join(os.environ.get("TMPDIR", "/tmp"), f"neuron_cpu_{JOB}"), WORLD)
GROUPS: dict[tuple[int, ...], Any] = {}
"""gloo's, by ranks; made when first used."""
Groups = Sequence[Sequence[int]] | None


def gather(tensor: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """Every rank's tensor, in the order of `ranks`; shapes may differ, so they travel as bytes."""
    if len(ranks) == 1:
        return [tensor]
    key = tuple(ranks)
    if key not in GROUPS:
        store = dist.PrefixStore("-".join(map(str, key)), STORE)
        GROUPS[key] = dist.ProcessGroupGloo(store, key.index(RANK), len(key), PATIENCE)
    data = torch.frombuffer(bytearray(pickle.dumps(tensor.contiguous())), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.long) for _ in key]
    GROUPS[key].allgather([sizes], [torch.tensor([len(data)])]).wait()
    longest = max(int(size) for size in sizes)
    padded = torch.nn.functional.pad(data, (0, longest - len(data)))
    everyone = [torch.zeros(longest, dtype=torch.uint8) for _ in key]
    GROUPS[key].allgather([everyone], [padded]).wait()
    return [pickle.loads(part[: int(size)].numpy().tobytes()) for part, size in zip(everyone, sizes, strict=True)]


def my_group(groups: Groups) -> list[int]:
    return next((list(ranks) for ranks in groups if RANK in ranks), [RANK]) if groups else list(range(WORLD))


def reduce(kind: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    steps: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        xm.REDUCE_SUM: torch.add, xm.REDUCE_MAX: torch.maximum, xm.REDUCE_MIN: torch.minimum,
        xm.REDUCE_MUL: torch.mul, xm.REDUCE_OR: torch.bitwise_or, xm.REDUCE_AND: torch.bitwise_and,
    }  # fmt: skip
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total = steps[kind](total, tensor)
    return total


def each(inputs: Any, outputs: Any, compute: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """For one tensor or a list of them; into `outputs`, where those are given."""
    is_one = isinstance(inputs, torch.Tensor)
    targets = [outputs] if is_one else outputs or [None] * len(inputs)
    done = []
    for tensor, target in zip([inputs] if is_one else inputs, targets, strict=True):
        found = compute(tensor.detach().cpu()).to(tensor.dtype).to(tensor.device)
        if target is not None:
            with torch.no_grad():
                target.copy_(found)
        done.append(found if target is None else target)
    return done[0] if is_one else done


def all_reduce(
    reduce_type: str,
    inputs: Any,
    scale: float = 1.0,
    groups: Groups = None,
    cctype: Any = None,
    pin_layout: bool = True,
) -> Any:
    """A list is changed in place, a single tensor is not."""
    ranks = my_group(groups)
    in_place = None if isinstance(inputs, torch.Tensor) else inputs

    def compute(tensor: torch.Tensor) -> torch.Tensor:
        total = reduce(reduce_type, gather(tensor, ranks))
        return total if scale == 1.0 else total * scale

    return each(inputs, in_place, compute)


def all_gather(value: Any, dim: int = 0, groups: Groups = None, output: Any = None, **ignored: Any) -> Any:
    ranks = my_group(groups)
    return each(value, output, lambda tensor: torch.cat(gather(tensor, ranks), dim=dim))


def reduce_scatter(
    reduce_type: str, input: Any, scale: float, scatter_dim: int, shard_count: int, groups: Groups = None, output: Any = None,
    **ignored: Any,
) -> Any:  # fmt: skip
    ranks = my_group(groups)

    def compute(tensor: torch.Tensor) -> torch.Tensor:
        whole = reduce(reduce_type, gather(tensor, ranks)) * scale
        return whole.chunk(len(ranks), dim=scatter_dim)[ranks.index(RANK)].contiguous()

    return each(input, output, compute)


def rendezvous(tag: str, payload: bytes = b"", replicas: Sequence[int] = ()) -> list[bytes]:
    gather(torch.zeros(1), range(WORLD))
    return [payload]


def mesh_reduce(tag: str, data: Any, function: Callable[[list[Any]], Any]) -> Any:
    if WORLD == 1:
        return function([data])
    sent = torch.frombuffer(bytearray(pickle.dumps(data)), dtype=torch.uint8)
    return function([pickle.loads(part.numpy().tobytes()) for part in gather(sent, range(WORLD))])


def take_over() -> None:
    """Put these in torch_xla's place."""
    os.environ.setdefault("HOST_WORLD_SIZE", os.environ.get("GROUP_WORLD_SIZE", "1"))
    xla_env_vars.HOST_WORLD_SIZE = "HOST_WORLD_SIZE"
    xr.world_size = xr.process_count = lambda: WORLD
    xr.global_ordinal = xr.process_index = lambda: RANK
    xr.local_ordinal = lambda: LOCAL_RANK
    xm.get_ordinal = lambda *args: RANK
    xm.get_local_ordinal = lambda *args: LOCAL_RANK
    xm.xrt_world_size = lambda *args: WORLD
    xm.is_master_ordinal = lambda local=True: (LOCAL_RANK if local else RANK) == 0
    xm.all_reduce, xm.all_gather, xm.reduce_scatter = all_reduce, all_gather, reduce_scatter
    xm.rendezvous, xm.mesh_reduce = rendezvous, mesh_reduce


take_over()
