"""The processes of a training on Neuron cores. Used by `worker` in place of `Ranks`.

The libraries want torch.distributed's default group to be torch_xla's, which carries device tensors only. Python objects (the
claim, losses, digests) go through a second group, over gloo on the host: no device graph has to be compiled for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from steps.errors import ConfigError, Problem
from steps.train.loop.ranks import Ranks, ValueT


class Sizes(Protocol):
    """What is looked at of a `TrainSpec`."""

    @property
    def tensor_parallel(self) -> int: ...
    @property
    def pipeline_parallel(self) -> int: ...


def by_replica(everyone: Sequence[ValueT], sizes: Sizes) -> Sequence[ValueT]:
    """Of every rank's value one for each replica: the last stage's, which alone knows losses.

    Tensor-parallel ranks, neighbours in the order of ranks, know the same; the stages stand one after the other.
    """
    last = len(everyone) // sizes.pipeline_parallel * (sizes.pipeline_parallel - 1)
    return everyone[last :: sizes.tensor_parallel]


@dataclass(frozen=True, slots=True)
class NeuronRanks(Ranks):
    """This process among its peers; one process alone has a group too, since the libraries ask for one."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @classmethod
    def of(cls, ranks: Ranks, *, tensor_parallel: int, pipeline_parallel: int = 1) -> NeuronRanks:
        """The same process."""
        places = (ranks.rank, ranks.world, ranks.local_rank, ranks.local_world)
        return cls(*places, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)

    def connect(self) -> None:
        """Meet the other ranks, on both groups, and lay them out. Needs torchrun's environment, for one process too.

        The layout comes here since optimum-neuron asks for it as soon as it is imported, once there is a process group.

        Raises:
            ConfigError: tensor and pipeline parallelism do not divide the processes.
            PeerLostError: they did not come.
        """
        if self.world % (self.tensor_parallel * self.pipeline_parallel):
            stages = f" × {self.pipeline_parallel} stages" if self.pipeline_parallel > 1 else ""
            what = f"must divide the number of processes, {self.world}, got {self.tensor_parallel}{stages}"
            raise ConfigError([Problem("launcher.tensor_parallel", what)])
        import torch.distributed as dist
        import torch_xla.distributed.xla_backend  # noqa: F401  # registers the backend
        from neuronx_distributed.parallel_layers import parallel_state

        from steps.train.loop.ranks import peers

        with peers():
            dist.init_process_group("xla")
            self._side.append(dist.new_group(backend="gloo"))
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.tensor_parallel, pipeline_model_parallel_size=self.pipeline_parallel
        )
