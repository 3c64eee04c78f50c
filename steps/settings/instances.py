"""What a Trainium instance has: cores, memory, devices, network adapters. Pure; used by `resolve`, the manifest and the layout.

Sources: the tables of SageMaker HyperPod's own command line (vCPU, memory, devices, EFA) and the Neuron documentation (cores).
"""

from __future__ import annotations

from dataclasses import dataclass

from steps.settings.section import suggest


@dataclass(frozen=True, slots=True)
class Instance:
    """One node."""

    name: str
    vcpus: int
    memory_gib: int
    devices: int
    """`aws.amazon.com/neuron`."""
    groups: tuple[int, ...]
    """Processes that its collectives let work together on one node, one on each (logical) NeuronCore; all cores last."""
    core_gib: float
    """Device memory of one (logical) core."""
    adapters: int
    """`vpc.amazonaws.com/efa`."""
    native_groups: tuple[int, ...] = ()
    """The same under TorchNeuron (`launcher.backend: torchneuron`); empty: it does not run there."""

    @property
    def cores(self) -> int:
        """Processes of a whole node."""
        return self.groups[-1]

    @property
    def label(self) -> str:
        """Value of HyperPod's label `node.kubernetes.io/instance-type`."""
        return f"ml.{self.name}"


INSTANCES = {
    item.name: item
    for item in (
        Instance("trn1.2xlarge", 8, 32, devices=1, groups=(1, 2), core_gib=16, adapters=0),
        Instance("trn1.32xlarge", 128, 512, devices=16, groups=(1, 2, 8, 32), core_gib=16, adapters=8),
        Instance("trn1n.32xlarge", 128, 512, devices=16, groups=(1, 2, 8, 32), core_gib=16, adapters=16),
        Instance("trn2.3xlarge", 12, 128, devices=1, groups=(1, 2, 4), core_gib=24, adapters=1, native_groups=(1, 4)),
        Instance(
            "trn2.48xlarge",
            192,
            2048,
            devices=16,
            groups=(1, 4, 16, 64),
            core_gib=24,
            adapters=16,
            native_groups=(1, 8, 16, 32, 64),
        ),
    )
}
"""trn2 with its default of two physical cores to a logical one (LNC=2). TorchNeuron's groups: one process alone needs none, all
cores are what AWS documents, and 8, 16 and 32 of 64 were reported to meet on one node (July 2026); of others nothing is known."""


def find_instance(name: str) -> Instance | None:
    """The instance type; SageMaker's `ml.` in front is ignored. None if it is not in the table."""
    return INSTANCES.get(name.removeprefix("ml."))


def unknown_instance(name: str) -> str:
    """What to say about a type that the table lacks."""
    known = list(INSTANCES)
    return f"unknown instance type {name!r}{suggest(name.removeprefix('ml.'), known)}; known: {', '.join(known)}"
