"""The mask that keeps packed samples apart, for devices on which each sample cannot be a shape of its own."""

from __future__ import annotations

import torch


def isolating_mask(samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(b, L) sample numbers → (b, 1, L, L), to be added to attention scores: 0 within a sample and not ahead, else the lowest.

    Made on the device where it can be, from L numbers instead of L².
    """
    length = samples.shape[1]
    place = torch.arange(length, device=samples.device)
    allowed = (samples[:, :, None] == samples[:, None, :]) & (place[:, None] >= place[None, :])
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=samples.device)
    return torch.where(allowed, torch.zeros_like(lowest), lowest)[:, None]
