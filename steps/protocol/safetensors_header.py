"""Where tensors lie in safetensors files: headers read and written, no tensor's bytes touched.

Used by `base` and `merge`, for the base's shards and for the adapter. The format is a little-endian header length (8 bytes),
a JSON header and the tensors' bytes without holes: https://huggingface.co/docs/safetensors. Needs neither torch nor numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.errors import LoraFlowError

LENGTH_BYTES = 8
HEADER_LIMIT = 100_000_000
"""Bytes; the limit of the safetensors library."""
ITEM_BYTES = {
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "U16": 2,
    "I32": 4,
    "U32": 4,
    "I64": 8,
    "U64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""torch's name → the format's, for the types that weights can be merged in."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor's place in a file."""

    file: Path
    name: str
    dtype: str
    """The format's own name, BF16 for example."""
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte in the file."""

    @property
    def bytes(self) -> int:
        """Length in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """All tensors of one file, in the order of their bytes."""

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]


def read_header(file: Path, *, error: type[LoraFlowError]) -> Header:
    """Read a file's header and compare it with the file's size.

    Raises:
        LoraFlowError: of the type `error`: missing, truncated, or no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            raw = stream.read(length) if length <= min(size, HEADER_LIMIT) else b""
    except OSError as cause:
        raise error(f"cannot read {file}: {cause.strerror}") from cause
    if len(raw) != length or not length:
        raise error(
            f"{file} is damaged or no safetensors file ({size} bytes, header of {length} bytes); fetch it again"
        )
    try:
        header = json.loads(raw)
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors = _located(file, header, LENGTH_BYTES + length)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as cause:
        why = f" ({cause})" if isinstance(cause, ValueError) else ""
        raise error(f"{file}: the safetensors header is damaged{why}; fetch the file again") from cause
    end = max((tensor.start + tensor.bytes for tensor in tensors), default=LENGTH_BYTES + length)
    if end != size:
        raise error(f"{file} is cut off or damaged: expected {end} bytes by its header, found {size}; fetch it again")
    return Header(tensors, metadata)


def _located(file: Path, header: Mapping[str, Any], data_start: int) -> tuple[StoredTensor, ...]:
    """The header's entries as places, checked one by one.

    Raises:
        ValueError, KeyError, TypeError: the header is not what the format asks for.
    """
    found = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensor = StoredTensor(file, name, entry["dtype"], tuple(map(int, entry["shape"])), data_start + int(begin))
        if tensor.dtype not in ITEM_BYTES:
            raise ValueError(f"unknown type {tensor.dtype} of {name}")
        if begin < 0 or end - begin != tensor.bytes:
            raise ValueError(f"{name} has {end - begin} bytes, its shape and type need {tensor.bytes}")
        found.append(tensor)
    return tuple(sorted(found, key=lambda tensor: tensor.start))


def lay_out(
    file: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[StoredTensor]]:
    """The header of a file to be written that holds (name, dtype, shape) in this order, and each tensor's place in it."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at, sizes = 0, []
    for name, dtype, shape in tensors:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        sizes.append(size)
        at += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the format aligns the data to 8 bytes
    start = LENGTH_BYTES + len(raw)
    places = []
    for (name, dtype, shape), size in zip(tensors, sizes, strict=True):
        places.append(StoredTensor(file, name, dtype, shape, start))
        start += size
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw, places
