"""Are the weights that should be equal on several ranks equal? Pure: digests in, sentences out. Used before every save.

Two things have gone wrong there in silence: under sequence parallel, gradients of replicated LoRA matrices that were not summed
over the tensor-parallel group (`neuron_trainer` sums them), and different seeds of data-parallel replicas. Both leave a loss
curve that looks normal and an exported adapter that is not the trained model. With more tensor-parallel ranks than KV heads,
several ranks hold the same head's K and V: those are compared too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from steps.errors import LoraFlowError
from steps.train.neuron.consolidate import is_kv_copy
from steps.train.neuron.state import Place


class ReplicaError(LoraFlowError):
    """Copies of the same weights have drifted apart; nothing is committed. Tried again: `failure_class` calls it unknown."""

    headline = "Replicas differ"


class ScheduleError(LoraFlowError):
    """The optimizer does not follow the schedule; it would not the next time either."""

    headline = "Wrong learning rate"


@dataclass(frozen=True, slots=True)
class Copies:
    """One rank's trained weights."""

    dp: int
    tp: int
    pp: int
    replicated: dict[str, str]
    """Name → digest, for weights that all tensor-parallel ranks hold whole."""
    sharded: dict[str, str]
    """Name → digest, for weights of which each tensor-parallel rank holds a part."""
    kv: dict[str, str] = field(default_factory=dict)
    """Name → digest, for K's and V's weights of one head, of which other ranks hold copies."""
    kv_head: int = 0
    """Of `kv`."""

    @classmethod
    def of(cls, at: Place, digests: Mapping[str, str], dims: Mapping[str, int | None], kv_heads: int | None) -> Copies:
        """`dims`: by weight, the dimension that is cut over tensor-parallel ranks. `kv_heads`: None where ranks share none."""
        whole = {name for name, dim in dims.items() if dim is None}
        kv = {name for name in digests.keys() - whole if kv_heads and is_kv_copy(name)}
        return cls(
            at.dp,
            at.tp,
            at.pp,
            replicated={name: digest for name, digest in digests.items() if name in whole},
            sharded={name: digest for name, digest in digests.items() if name not in whole | kv},
            kv={name: digest for name, digest in digests.items() if name in kv},
            kv_head=at.tp % kv_heads if kv_heads else 0,
        )

    @property
    def place(self) -> str:
        """In words."""
        return f"dp {self.dp} tp {self.tp}" + (f" pp {self.pp}" if self.pp else "")


def disagreements(everyone: Sequence[Copies]) -> list[str]:
    """One sentence for each weight that differs where it must not."""
    found = []
    for pp in sorted({copies.pp for copies in everyone}):
        stage = [copies for copies in everyone if copies.pp == pp]
        found += _differing((copies.replicated, copies) for copies in stage)
        for tp in sorted({copies.tp for copies in stage}):
            found += _differing((copies.sharded, copies) for copies in stage if copies.tp == tp)
        for head in sorted({copies.kv_head for copies in stage}):
            found += _differing((copies.kv, copies) for copies in stage if copies.kv_head == head)
    return found


def _differing(items: Iterable[tuple[dict[str, str], Copies]]) -> list[str]:
    held = list(items)
    first, where = held[0]
    found = []
    for name, digest in first.items():
        others = [f"{copies.place}" for digests, copies in held if digests.get(name) != digest]
        if others:
            found.append(f"{name} of {where.place} differs from {', '.join(others[:4])}")
    return found


def require_equal(everyone: Sequence[Copies], *, step: int) -> None:
    """Refuse to commit copies that differ.

    Raises:
        ReplicaError: naming the first few.
    """
    if found := disagreements(everyone):
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise ReplicaError(
            f"at step {step} copies of the same weights are not equal: {'; '.join(found[:3])}{more}. Nothing is saved: an "
            "adapter put together from these would not be the trained model. The last complete checkpoint is good; go on from "
            "it, and if this happens again, look for a failing core (dmesg) or another version of neuronx-distributed"
        )


def require_rate(used: Sequence[float], scheduled: Sequence[float], *, step: int) -> None:
    """The optimizer's learning rates must be the scheduler's: under ZeRO-1 they come apart when the link between them breaks.

    Raises:
        ScheduleError: they are not.
    """
    if list(used) != list(scheduled):
        raise ScheduleError(
            f"at step {step} the optimizer would use learning rates {list(used)}, the schedule says {list(scheduled)}: the "
            "scheduler has lost the ZeRO-1 optimizer, and training would go on at the wrong rate, often 0; this is a fault "
            "of this program with this version of optimum-neuron (written for 0.4.5): report it"
        )
