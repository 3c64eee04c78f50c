"""The processes of one training, and what they say to each other.

Used by `worker`, `callbacks` and the backends. One process alone needs no process group: then every method answers at once.
A peer that is gone shows as PeerLostError, whatever exception the transport chose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from steps import machine
from steps.protocol.neuron_codes import find_neuron_code

if TYPE_CHECKING:
    from torch import Tensor

ValueT = TypeVar("ValueT")


CARRIERS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Type of device → back end of a process group that carries its tensors, the CPU's and objects."""


class PeerLostError(ConnectionError):
    """Another rank went away. It knows why; this rank is only its victim."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    """Processes on this machine."""
    _side: list[Any] = field(default_factory=list, repr=False, compare=False)
    """A gloo group beside the default one, once connected, where that one carries neither objects nor CPU tensors."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Ranks:
        """What torchrun has set; one process alone without it."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, world, local_rank, local_world = (
            int(environment.get(name, default)) for name, default in zip(names, (0, 1, 0, 1), strict=True)
        )
        return cls(rank, world, local_rank, local_world)

    @property
    def group(self) -> Any:
        """The process group that carries Python objects; None: the default one."""
        return self._side[0] if self._side else None

    def threads(self, asked: int) -> int:
        """CPU threads of this process: as asked, or its share of the cores that it may use."""
        return machine.threads_of(asked, self.local_world)

    def connect(self) -> None:
        """Meet the other ranks, before the device is touched.

        Raises:
            PeerLostError: they did not come.
        """
        if self.world == 1:
            return
        import torch.distributed as dist

        from steps.train.loop.device import device_type

        kind = device_type()
        with peers():
            if kind in CARRIERS:
                dist.init_process_group(CARRIERS[kind])
            else:
                dist.init_process_group(dist.get_default_backend_for_device(kind))
                self._side.append(dist.new_group(backend="gloo"))

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather(None)

    @contextlib.contextmanager
    def in_turn(self, at_once: int) -> Iterator[None]:
        """Let `at_once` processes of each machine work at the same time, one lot after the other; the same on every rank."""
        mine = self.local_rank // at_once
        for _ in range(mine):
            self.wait()
        yield
        for _ in range(-(-self.local_world // at_once) - 1 - mine):
            self.wait()

    def share(self, value: ValueT) -> ValueT:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        holder = [value]
        with peers():
            dist.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]

    def gather(self, value: ValueT) -> list[ValueT]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        with peers():
            dist.all_gather_object(found, value, group=self.group)
        return found

    @property
    def has_pairs(self) -> bool:
        """Can two ranks swap tensors of the device? TorchNeuron's group has no send and receive."""
        return not self._side

    def exchange(self, partner: int, mine: Tensor) -> Tensor:
        """Swap equal-sized tensors with another rank; returns the partner's."""
        import torch
        import torch.distributed as dist

        theirs = torch.empty_like(mine)
        with peers():
            swap = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]
            for work in dist.batch_isend_irecv(swap):
                work.wait()
        return theirs

    def all_gather(self, mine: Tensor) -> Tensor:
        """(n,) of each rank → (world, n), in the order of ranks."""
        import torch.distributed as dist

        everyone = mine.new_empty(self.world * mine.numel())
        with peers():
            dist.all_gather_into_tensor(everyone, mine.contiguous())
        return everyone.view(self.world, -1)

    def add_up(self, tensor: Tensor) -> None:
        """Sum over all ranks, in place, in an order of the transport's own."""
        if self.world > 1:
            import torch.distributed as dist

            with peers():
                dist.all_reduce(tensor)


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Inside a collective, gloo's bare RuntimeError means that a connection was closed.

    Not so where the Neuron runtime's words are in it: on that device earlier work fails at the next call, whatever that is.
    """
    try:
        yield
    except RuntimeError as error:
        if find_neuron_code(str(error)):
            raise
        raise _lost(error) from error


@contextlib.contextmanager
def peers_may_vanish() -> Iterator[None]:
    """For code that computes and communicates at once: there a RuntimeError may also be the computation's own.

    gloo's has no type of its own, so here, and only here, its source file in the message decides.
    """
    try:
        yield
    except RuntimeError as error:
        if "/gloo/" in str(error):
            raise _lost(error) from error
        raise


def _lost(error: RuntimeError) -> PeerLostError:
    return PeerLostError(f"lost another rank ({str(error).splitlines()[0][:200]})")
