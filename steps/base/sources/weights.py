"""Small models written as safetensors, tensor by tensor and without torch.

Used by `wheel` and `random`. The safetensors library has no stable call for bf16, which numpy does not know. The header is not
`protocol.safetensors_header.lay_out`'s: other spaces in its JSON would change the digest of models that are in use.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import ModelError
from steps.protocol.safetensors_header import ITEM_BYTES

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be written: its values are made only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray[Any, Any]]
    """fp32, of this shape."""


def write_file(
    path: Path, tensors: Sequence[Tensor], *, dtype: str, on_tensor: Callable[[int], None] | None = None
) -> None:
    """Write fp32 values as `BF16` (rounded to nearest even) or `F32`; memory stays at one tensor.

    `on_tensor` hears how many are written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + math.prod(tensor.shape) * ITEM_BYTES[dtype]
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the library aligns the data to eight bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for number, tensor in enumerate(tensors, 1):
            values = tensor.values()
            if values.shape != tensor.shape:
                raise ModelError(f"{tensor.name}: expected shape {tensor.shape}, found {values.shape}")
            file.write((round_to_bf16(values) if dtype == "BF16" else values.astype("<f4")).tobytes())
            if on_tensor:
                on_tensor(number)


def round_to_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The upper halves (uint16) of finite fp32 values, rounded to nearest even as torch does."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype="<f4").view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype("<u2")
