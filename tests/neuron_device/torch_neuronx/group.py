"""The process group `neuron`, as strict as the beta: made before the device is used, device tensors only, no send and receive."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from torch_neuronx.device import NAME, NeuronTensor, State


def held(tensor: Any) -> torch.Tensor:
    if not isinstance(tensor, NeuronTensor):
        raise RuntimeError("No backend type associated with device type cpu")
    if not tensor.numel():
        raise RuntimeError("Empty tensors are not supported")
    return tensor.held


class ProcessGroupNeuron(dist.ProcessGroup):
    """Carried by gloo."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        if State.is_used:
            raise RuntimeError("The Neuron runtime is already initialized: call init_process_group first")
        missing = [name for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name not in os.environ]
        if missing:
            raise RuntimeError(f"waits for ever without {missing}")
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._name = ""

    def getBackendName(self) -> str:
        return NAME

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device(NAME)]

    @property
    def pg_name(self) -> str:
        return self._name

    @property
    def group_name(self) -> str:
        return self._name

    def _set_group_name(self, name: str) -> None:
        self._name = name

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:
        opts = opts if opts is not None else dist.AllreduceOptions()
        return self._gloo.allreduce([held(tensor) for tensor in tensors], opts)

    def broadcast(self, tensors: Any, opts: Any = None) -> Any:
        """Zeros elsewhere, and a sum."""
        for tensor in tensors:
            if self.rank() != opts.rootRank:
                held(tensor).zero_()
        return self._gloo.allreduce([held(tensor) for tensor in tensors], dist.AllreduceOptions())

    def _allgather_base(self, output: Any, tensor: Any, opts: Any = None) -> Any:
        self._fail_on_demand()
        return self._gloo._allgather_base(held(output), held(tensor))

    def allgather(self, outputs: Any, tensors: Any, opts: Any = None) -> Any:
        return self._gloo.allgather([[held(part) for part in parts] for parts in outputs], [held(t) for t in tensors])

    def _reduce_scatter_base(self, output: Any, tensor: Any, opts: Any = None) -> Any:
        whole = held(tensor).clone()
        self._gloo.allreduce([whole]).wait()
        held(output).copy_(whole.chunk(self.size())[self.rank()])
        return self._gloo.barrier()

    all_gather_single = _allgather_base
    reduce_scatter_single = _reduce_scatter_base

    def _fail_on_demand(self) -> None:
        """An error of earlier work shows at the next collective, on this rank alone: `STAND_IN_ERROR` is `<rank>:<words>`."""
        rank, _, words = os.environ.get("STAND_IN_ERROR", "").partition(":")
        if rank == str(self.rank()):
            raise RuntimeError(words)

    def barrier(self, opts: Any = None) -> Any:
        return self._gloo.barrier()


def register() -> None:
    """Make the group known to torch.distributed, whose recorder of collectives (on since 2.15) knows C++ groups only."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "0")

    def make(store: Any, rank: int, size: int, timeout: timedelta) -> ProcessGroupNeuron:
        return ProcessGroupNeuron(store, rank, size, timeout)

    dist.Backend.register_backend(NAME, make, devices=[NAME])
