"""The optimizer's and scheduler's state on Neuron: one safetensors file per rank, and one JSON file. No pickle.

Used by `neuron_trainer`. Under ZeRO-1 each data-parallel rank holds the n-th part of every tensor (its moments and its fp32
master weights, cut along dimension 0 and padded); without ZeRO-1 (fp32) all hold the whole. Reading joins the parts and cuts
them again for the ranks that are there now, so a checkpoint can go on with another number of replicas.

The state is put into the optimizer's own dictionaries: its `load_state_dict` would make new parameter groups, which the
scheduler would not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import CheckpointError
from steps.protocol.rundir import read_json, write_atomic, write_json
from steps.train.loop.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor

NUMBERS = "trainer.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's coordinates. Tensor-parallel ranks are neighbours, then replicas, then stages (neuronx-distributed's order)."""

    dp: int
    tp: int
    data_parallel: int
    """Number of replicas."""
    pp: int = 0

    @classmethod
    def of(cls, ranks: Ranks, tensor_parallel: int, pipeline_parallel: int = 1) -> Place:
        """Where a rank stands."""
        group, tp = divmod(ranks.rank, tensor_parallel)
        replicas = ranks.world // (tensor_parallel * pipeline_parallel)
        return cls(group % replicas, tp, replicas, group // replicas)

    def file(self, dp: int | None = None) -> str:
        """Name of the optimizer file of this rank, or of another replica's."""
        return f"optimizer-dp{self.dp if dp is None else dp:02d}-tp{self.tp:02d}-pp{self.pp:02d}.safetensors"


@dataclass(frozen=True, slots=True)
class Held:
    """A trained weight, and what this rank's optimizer holds of it."""

    name: str
    parameter: Any
    part: Any
    """The optimizer's own parameter: this replica's part under ZeRO-1, else `parameter` itself."""
    state: dict[str, Any]
    """Of AdamW; filled by its first step."""


class OptimizerState:
    """The state of ZeRO-1's optimizer or of plain AdamW, by weight."""

    def __init__(self, optimizer: Any, names: dict[int, str], place: Place) -> None:
        """`names`: a trained parameter's id → its name in files."""
        self._optimizer, self._names, self._place = optimizer, names, place
        self._base = getattr(optimizer, "base_optimizer", optimizer)
        self.is_sharded = self._base is not optimizer

    def __iter__(self) -> Iterator[Held]:
        for group, parts in zip(self._optimizer.param_groups, self._base.param_groups, strict=True):
            for parameter, part in zip(group["params"], parts["params"], strict=True):
                yield Held(self._names[id(parameter)], parameter, part, self._base.state[part])

    def save(self, folder: Path, scheduler: Any, *, writes_numbers: bool) -> None:
        """Write this rank's file; `writes_numbers` on one rank only.

        Raises:
            StorageError: it cannot be written.
        """
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        updates = 0
        for held in self:
            updates = int(held.state["step"])
            tensors |= {f"{key}/{held.name}": held.state[key] for key in MOMENTS}
            if self.is_sharded:
                tensors[f"{MASTER}/{held.name}"] = held.part
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(folder / self._place.file(), save(found))
        if writes_numbers:
            schedule = scheduler.state_dict()
            numbers = {
                "updates": updates,
                "rates": [float(group["lr"]) for group in self._optimizer.param_groups],
                "schedule": {key: value for key, value in schedule.items() if isinstance(value, int | float)},
                "last_rates": schedule["_last_lr"],
                "data_parallel": self._place.data_parallel,
                "is_sharded": self.is_sharded,
            }
            write_json(folder / NUMBERS, numbers)

    def restore(self, folder: Path, scheduler: Any, weights: dict[str, Tensor]) -> None:
        """Put weights, optimizer and schedule of a checkpoint into place.

        Raises:
            CheckpointError: it is of other weights, or of another precision.
        """
        numbers = read_json(folder / NUMBERS)
        if numbers["is_sharded"] != self.is_sharded:
            raise CheckpointError(f"{folder} was saved with another precision; a changed --precision starts anew")
        replicas = [self._read(folder, dp) for dp in range(numbers["data_parallel"] if self.is_sharded else 1)]
        for held in self:
            if held.name not in weights:
                raise CheckpointError(f"{folder} has no weight {held.name}: it is of another training, remove it")
            self._put(held.parameter, weights[held.name])
            for key in MOMENTS:
                held.state[key] = self._cut(held, [replica[f"{key}/{held.name}"] for replica in replicas])
            held.state["step"] = _scalar(numbers["updates"])
            if self.is_sharded:
                self._put(held.part, self._cut(held, [replica[f"{MASTER}/{held.name}"] for replica in replicas]))
        for groups in (self._optimizer.param_groups, self._base.param_groups):
            for group, rate in zip(groups, numbers["rates"], strict=True):
                group["lr"] = rate
        scheduler.load_state_dict({**scheduler.state_dict(), **numbers["schedule"], "_last_lr": numbers["last_rates"]})

    def _read(self, folder: Path, dp: int) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        found: dict[str, Tensor] = load_file(folder / self._place.file(dp if self.is_sharded else 0))
        return found

    def _cut(self, held: Held, parts: list[Tensor]) -> Any:
        """The replicas' parts joined, without their padding, and cut for this replica."""
        import torch

        whole = torch.cat(parts)[: held.parameter.shape[0]]
        mine = self._optimizer._shard_tensor(whole) if self.is_sharded else whole
        return mine.to(device=held.part.device, dtype=held.part.dtype).contiguous()

    @staticmethod
    def _put(target: Any, value: Tensor) -> None:
        import torch

        with torch.no_grad():
            target.copy_(value.to(device=target.device, dtype=target.dtype))


def _scalar(updates: int) -> Any:
    """AdamW's own form of its step counter: on the CPU, so that it is no part of a device graph."""
    import torch

    return torch.tensor(float(updates), dtype=torch.float32)
