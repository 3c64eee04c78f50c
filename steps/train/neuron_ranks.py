"""The processes of a training on Neuron cores. Used by `worker` in place of `Ranks`.

The libraries want torch.distributed's default group to be torch_xla's, which carries device tensors only. Python objects (the
claim, losses, digests) go through a second group, over gloo on the host: no device graph has to be compiled for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steps.errors import ConfigError, Problem
from steps.train.ranks import Ranks


@dataclass(frozen=True, slots=True)
class NeuronRanks(Ranks):
    """This process among its peers; one process alone has a group too, since the libraries ask for one."""

    tensor_parallel: int = 1
    _host: list[Any] = field(default_factory=list, repr=False, compare=False)
    """The gloo group, once connected."""

    @classmethod
    def of(cls, ranks: Ranks, *, tensor_parallel: int) -> NeuronRanks:
        """The same process."""
        return cls(ranks.rank, ranks.world, ranks.local_rank, ranks.local_world, tensor_parallel)

    @property
    def group(self) -> Any:
        """The gloo group."""
        return self._host[0] if self._host else None

    def connect(self) -> None:
        """Meet the other ranks, on both groups, and lay them out. Needs torchrun's environment, for one process too.

        The layout comes here since optimum-neuron asks for it as soon as it is imported, once there is a process group.

        Raises:
            ConfigError: tensor parallelism does not divide the processes.
            PeerLostError: they did not come.
        """
        if self.world % self.tensor_parallel:
            what = f"must divide the number of processes, {self.world}, got {self.tensor_parallel}"
            raise ConfigError([Problem("launcher.tensor_parallel", what)])
        import torch.distributed as dist
        import torch_xla.distributed.xla_backend  # noqa: F401  # registers the backend
        from neuronx_distributed.parallel_layers import parallel_state

        from steps.train.ranks import peers

        with peers():
            dist.init_process_group("xla")
            self._host.append(dist.new_group(backend="gloo"))
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=self.tensor_parallel)
