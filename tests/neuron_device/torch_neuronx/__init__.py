"""A stand-in for TorchNeuron: device `neuron` and process group `neuron`, carried by the CPU and gloo. For tests only.

With `tests/neuron_device` on PYTHONPATH torch loads it by itself, as it loads the real package, so that the real worker,
transformers and peft run on the device. It shows what has to do with the device's rules (who may touch it when, what lies where,
which collectives there are, how many shapes are compiled), nothing of speed, memory or the numbers that Trainium computes.

Other than there: tensors have no storage of their own, and all are on `neuron:0`, whichever core is the process's.
"""

from __future__ import annotations


def _autoload() -> None:
    """Called by torch when it is imported (entry point `torch.backends`)."""
    from torch_neuronx import device, group

    device.register()
    group.register()
