"""Safetensors files without torch: their headers are read and checked, small models are written tensor by tensor.

Used by `folder` (to inspect), `wheel` and `tiny` (to write). Knows the format, nothing of models. The safetensors library
has no stable call for bf16 bytes that numpy does not know; the format is eight bytes of length, a JSON header, the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

DTYPE_NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}
"""Safetensors' names of floating-point types → ours; others keep their name in small letters."""
ITEM_BYTES = {"BF16": 2, "F32": 4}
LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses longer ones as well."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be written: its values are made only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray[Any, Any]]
    """fp32, of this shape."""


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name → {dtype, shape, data_offsets} of every tensor in the file.

    Raises:
        ModelError: not a safetensors file, or its size differs from what the header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise ModelError(f"{path} is not a safetensors file ({size} bytes): fetch it again")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        for entry in tensors.values():
            count_items([int(size) for size in entry["shape"]])
            str.lower(entry["dtype"])
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path}: its safetensors header is damaged: fetch it again") from error
    if 8 + length + end != size:
        raise ModelError(
            f"{path} is cut off or damaged: expected {8 + length + end} bytes, found {size}; fetch it again"
        )
    return tensors


def write_file(
    path: Path, tensors: Sequence[Tensor], *, dtype: str, on_tensor: Callable[[int], None] | None = None
) -> None:
    """Write fp32 values as `BF16` (rounded to nearest even) or `F32`; memory stays at one tensor.

    `on_tensor` hears how many are written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + count_items(tensor.shape) * ITEM_BYTES[dtype]
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


def count_items(shape: Sequence[int]) -> int:
    """Elements of a tensor."""
    count = 1
    for side in shape:
        count *= side
    return count


def round_to_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The upper halves (uint16) of finite fp32 values, rounded to nearest even as torch does."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype="<f4").view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype("<u2")
