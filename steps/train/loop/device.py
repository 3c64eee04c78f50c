"""Which device a rank of the torch backend trains on, asked of torch.accelerator."""

from __future__ import annotations

import importlib.util

import torch

from steps.errors import ConfigError, Problem

NOT_TRIED = frozenset({"mps"})
"""Accelerators that are passed over for the CPU: nobody has compared what they compute."""
COMPILED = frozenset({"neuron"})
"""Devices on which every new shape is a compilation."""

FLASH_STEP, PLAIN_STEP = 512, 128
"""Lengths of rows on those: Neuron's flash kernel takes multiples of 512, other tiles are 128 wide."""


def fixed_width(sequence_length: int) -> int:
    """Tokens of every row where there is one shape: `sequence_length` rounded up."""
    step = FLASH_STEP if sequence_length >= FLASH_STEP else PLAIN_STEP
    return -(-sequence_length // step) * step


def device_type() -> str:
    """`cpu`, `cuda`, `neuron`, …; does not touch the device, which some allow only once there is a process group."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None or found.type in NOT_TRIED else found.type


def require_neuron() -> None:
    """A training that was planned for TorchNeuron trains there or not at all.

    Raises:
        ConfigError: torch has no device `neuron` here, or torch_xla is installed beside it.
    """
    if importlib.util.find_spec("torch_xla") is not None:
        what = "torchneuron, but torch_xla is installed here, with which transformers takes another path"
        raise ConfigError([Problem("launcher.backend", f"{what}; use the image of containers/torchneuron.Dockerfile")])
    if (kind := device_type()) != "neuron":
        what = f"torchneuron, but torch finds no device neuron here, only {kind}: torch-neuronx 2.13 or later is not"
        what += " installed, or sees no NeuronCore (neuron-ls)"
        raise ConfigError([Problem("launcher.backend", f"{what}; use containers/torchneuron.Dockerfile on Trn2")])


def loaders(needed_bytes: int, processes: int, *, free_bytes: int | None) -> int:
    """How many of a machine's processes may hold a whole model in its memory at once; each hands it to its device.

    `needed_bytes`: of one; `free_bytes`: of the machine, half of which may be used, None: not known.
    """
    if free_bytes is None or not needed_bytes:
        return processes
    return min(max(free_bytes // 2 // needed_bytes, 1), processes)


def take_device(local_rank: int) -> torch.device:
    """This rank's device, made the current one. Comes after `Ranks.connect`.

    Raises:
        ConfigError: there are more processes than devices on this machine.
    """
    kind = device_type()
    if kind == "cpu":
        return torch.device(kind)
    if local_rank >= (count := torch.accelerator.device_count()):
        what = f"must be at most the {count} {kind} devices of this machine, got {local_rank + 1} or more"
        raise ConfigError([Problem("--processes", what)])
    torch.accelerator.set_device_index(local_rank)
    return torch.device(kind, local_rank)
