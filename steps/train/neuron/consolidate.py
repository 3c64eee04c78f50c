"""The ranks' shares of an adapter, put together as PEFT's own format. Needs torch and safetensors, no Neuron device.

Used by `neuron_backend` at the end of training, and by hand on any checkpoint:

    python -m steps.train.neuron.consolidate CHECKPOINT OUT

optimum-neuron's own consolidation takes rank 0's copy of replicated weights unseen, and raises KeyError for adapters that leave
out gate_proj and up_proj. Here: sharded weights are joined along their dimension; replicated ones must be equal on all ranks;
a fused gate_up_proj and qkv_proj become the modules that PEFT knows; copies of KV heads must be equal and are kept once; query
heads, which replicated KV puts in another order, come back to their places in q_proj's rows and o_proj's columns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import CheckpointError
from steps.protocol.rundir import read_json, storage_errors

if TYPE_CHECKING:
    from torch import Tensor

SHAPE = "adapter_shape.json"
CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "qkv_proj": ("q_proj", "k_proj", "v_proj")}


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """How an adapter is cut over tensor-parallel ranks, and its layers over stages."""

    tensor_parallel: int
    heads: int
    kv_heads: int
    replicates_kv: bool
    """More ranks than KV heads: q, k and v are fused, and query heads stand in another order."""
    partition_dims: dict[str, int | None]
    """By weight, of all stages; None: every rank holds the whole."""
    pipeline_parallel: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> AdapterShape:
        """The shape saved in a checkpoint.

        Raises:
            StorageError: unreadable.
            CheckpointError: not what a save writes.
        """
        try:
            return cls(**read_json(folder / SHAPE))
        except TypeError as error:
            raise CheckpointError(f"{folder / SHAPE} is no shape of an adapter ({error})") from error


def shard_name(tp: int, pp: int = 0, *, best: bool = False) -> str:
    """File of the weights of one tensor-parallel rank in one stage."""
    return f"{'best' if best else 'weights'}-tp{tp:02d}-pp{pp:02d}.safetensors"


def consolidate(shards: Sequence[Mapping[str, Tensor]], shape: AdapterShape) -> dict[str, Tensor]:
    """The whole adapter under PEFT's names, from the tensor-parallel ranks' weights (of all stages) in their order.

    Raises:
        CheckpointError: copies that should be equal are not, or a weight is missing.
    """
    whole: dict[str, Tensor] = {}
    for name, dim in shape.partition_dims.items():
        try:
            parts = [shard[name] for shard in shards]
        except KeyError as error:
            raise CheckpointError(f"a rank's share of the adapter lacks {name}: the checkpoint is not whole") from error
        whole |= _named(name, _equal(name, parts)) if dim is None else _joined(name, parts, dim, shape)
    return {name: tensor.contiguous().clone() for name, tensor in whole.items()}


def _named(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A weight that fused modules share (their lora_A) belongs to each of them."""
    for fused, names in FUSED.items():
        if f".{fused}." in name:
            return {name.replace(f".{fused}.", f".{single}."): tensor for single in names}
    return {name: tensor}


def _equal(name: str, parts: Sequence[Tensor]) -> Tensor:
    for number, part in enumerate(parts[1:], start=1):
        if not part.equal(parts[0]):
            gap = (
                (part.double() - parts[0].double()).abs().max().item() if part.shape == parts[0].shape else float("nan")
            )
            raise CheckpointError(
                f"{name}: copy {number} differs from copy 0 by up to {gap:.3g}; they must be equal. The ranks trained different "
                "adapters, and no export of them is the trained model: go on from an older checkpoint"
            )
    return parts[0]


def _joined(name: str, parts: Sequence[Tensor], dim: int, shape: AdapterShape) -> dict[str, Tensor]:
    import torch

    if ".gate_up_proj." in name:
        halves = [part.chunk(2, dim) for part in parts]
        names = (name.replace("gate_up_proj", single) for single in FUSED["gate_up_proj"])
        return {single: torch.cat([half[at] for half in halves], dim) for at, single in enumerate(names)}
    joined = torch.cat(list(parts), dim)
    if ".qkv_proj." in name:
        return _unfused_qkv(name, joined, shape)
    if ".o_proj." in name and shape.replicates_kv:
        return {name: joined.unflatten(dim, (shape.heads, -1)).index_select(dim, _places(shape)).flatten(dim, dim + 1)}
    return {name: joined}


def _unfused_qkv(name: str, joined: Tensor, shape: AdapterShape) -> dict[str, Tensor]:
    letter = name[-1]
    single = name.replace("qkv_proj", f"{letter}_proj").removesuffix(f"_{letter}")
    if letter == "q":
        return {single: joined.unflatten(0, (shape.heads, -1)).index_select(0, _places(shape)).flatten(0, 1)}
    copies = joined.chunk(shape.tensor_parallel // shape.kv_heads, 0)
    return {single: _equal(name, copies)}


def is_kv_copy(name: str) -> bool:
    """Of the weights of a fused qkv_proj that are cut: is this one K's or V's? Rank r then holds KV head r % kv_heads."""
    return ".qkv_proj." in name and name.endswith(("_k", "_v"))


def head_order(shape: AdapterShape) -> list[int]:
    """Query heads in the order in which the ranks hold them, when each rank holds one copy of one KV head.

    Rank r has KV head r % kv_heads, and of the query heads that belong to it the (r // kv_heads)-th part.
    """
    group, mine = shape.heads // shape.kv_heads, shape.heads // shape.tensor_parallel
    return [
        rank % shape.kv_heads * group + rank // shape.kv_heads * mine + number
        for rank in range(shape.tensor_parallel)
        for number in range(mine)
    ]


def _places(shape: AdapterShape) -> Tensor:
    """Where each query head, 0, 1, 2, …, stands among the ranks' heads."""
    import torch

    return torch.tensor(head_order(shape)).argsort()


def consolidate_checkpoint(checkpoint: Path, out: Path, *, best: bool = False) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` of a checkpoint into an existing directory.

    Raises:
        CheckpointError: not a neuron checkpoint, not whole, or its ranks disagree.
        StorageError: it cannot be read or written.
    """
    from safetensors.torch import load_file, save

    shape = AdapterShape.read(checkpoint)
    stages = range(shape.pipeline_parallel)
    files = [[checkpoint / shard_name(tp, pp, best=best) for pp in stages] for tp in range(shape.tensor_parallel)]
    if missing := [file.name for rank in files for file in rank if not file.is_file()]:
        raise CheckpointError(
            f"{checkpoint} has no {', '.join(missing)}: expected one file per tensor-parallel rank and stage"
        )
    shards = [{name: tensor for file in rank for name, tensor in load_file(file).items()} for rank in files]
    weights = consolidate(shards, shape)
    with storage_errors(f"writing {out}"):
        (out / ADAPTER).write_bytes(save(weights, metadata={"format": "pt"}))
        (out / CONFIG).write_bytes((checkpoint / CONFIG).read_bytes())


def main(argv: Sequence[str] | None = None) -> int:
    """Consolidate one checkpoint from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m steps.train.neuron.consolidate", description="Make a PEFT adapter of a neuron checkpoint."
    )
    parser.add_argument("checkpoint", type=Path, help="a directory train-…/checkpoints/step-…")
    parser.add_argument("out", type=Path, help="directory for the adapter, made if missing")
    parser.add_argument("--best", action="store_true", help="the adapter with the lowest validation loss so far")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    consolidate_checkpoint(given.checkpoint, given.out, best=given.best)
    print(given.out / ADAPTER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
