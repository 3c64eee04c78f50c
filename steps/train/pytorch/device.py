"""Which device a rank trains on. Called once a process group exists: some devices cannot be touched before."""

from __future__ import annotations

import torch

from steps.errors import ConfigError, Problem

NOT_TRIED = frozenset({"mps"})
"""Accelerators that are passed over for the CPU: nobody has compared what they compute."""


def take_device(local_rank: int) -> torch.device:
    """This rank's accelerator, made the current one; the CPU where there is none.

    Raises:
        ConfigError: there are more processes than accelerators on this machine.
    """
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None or kind.type in NOT_TRIED:
        return torch.device("cpu")
    if local_rank >= (count := torch.accelerator.device_count()):
        what = f"must be at most the {count} {kind.type} devices of this machine, got {local_rank + 1} or more"
        raise ConfigError([Problem("--processes", what)])
    torch.accelerator.set_device_index(local_rank)
    return torch.device(kind.type, local_rank)
