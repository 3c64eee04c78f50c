"""The sums of a merge, on one block of rows that stays in the processor's cache: widen, add, narrow.

Used by `stream`. Everything is computed in fp32 and rounded once, to nearest even. numpy does it all, except where the result is
stored in fp32: there the product's last bit shows, it depends on the BLAS library's order of summation, and PEFT's is torch's.
In bf16 and fp16 the rounding hides it. Reads and writes no file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from steps.errors import CheckpointError
from steps.merge.experts import Share

Floats: TypeAlias = npt.NDArray[np.float32]
Words: TypeAlias = npt.NDArray[np.uint32]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Product: TypeAlias = Callable[[Floats, Floats, Floats], None]
"""(up, down, out): out = up @ down."""

SMALL_PRODUCT = 1_000_000
"""rows × columns × rank up to which OpenBLAS multiplies without first packing its operands: twice as fast at LoRA's ranks."""
ALIGNMENT_BYTES = 64


def aligned(count: int) -> Bytes:
    """`count` bytes that begin where torch's own would: MKL promises the same bits for operands aligned to 64 bytes only."""
    memory = np.empty(count + ALIGNMENT_BYTES, np.uint8)
    skipped = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[skipped : skipped + count]


def widen(raw: Bytes, dtype: str, into: Words) -> Floats:
    """The raw bytes of BF16, F16 or F32 values as fp32, in the memory of `into`."""
    values = into.view(np.float32)
    if dtype == "BF16":
        np.copyto(into, raw.view(np.uint16))
        np.left_shift(into, 16, out=into)
    else:
        np.copyto(values, raw.view(np.float16 if dtype == "F16" else np.float32))
    return values


def narrow(values: Floats, dtype: str, into: Bytes, scratch: Words) -> None:
    """Round fp32 values to nearest even into raw BF16, F16 or F32 bytes.

    Raises:
        FloatingPointError: a finite value is too large for fp16.
    """
    if dtype == "BF16":
        _round_to_bf16(values.view(np.uint32), into.view(np.uint16), scratch)
    elif dtype == "F16":
        with np.errstate(over="raise", under="ignore"):
            np.copyto(into.view(np.float16), values, casting="unsafe")
    else:
        np.copyto(into.view(np.float32), values)


def _round_to_bf16(bits: Words, into: npt.NDArray[np.uint16], scratch: Words) -> None:
    """Add half of the last kept place, less one bit where that place is even, and cut.

    A NaN whose payload reaches the lowest bit would carry over into a zero; arithmetic never makes one, and finite bases and
    adapters hold none.
    """
    np.right_shift(bits, 16, out=scratch)
    np.bitwise_and(scratch, 1, out=scratch)
    np.add(scratch, bits, out=scratch)
    np.add(scratch, 0x7FFF, out=scratch)
    np.right_shift(scratch, 16, out=scratch)
    np.copyto(into, scratch, casting="unsafe")


def numpy_product(up: Floats, down: Floats, out: Floats) -> None:
    """out = up @ down, in pieces of a few rows."""
    rank, columns = down.shape
    piece = next((rows for rows in (16, 8, 4) if rows * columns * rank <= SMALL_PRODUCT), len(up))
    whole = len(up) // piece * piece
    np.matmul(up[:whole].reshape(-1, piece, rank), down, out=out[:whole].reshape(-1, piece, columns))
    if whole < len(up):
        np.matmul(up[whole:], down, out=out[whole:])


def torch_product() -> Product:
    """The same with torch's own summation, hence PEFT's bits. Imports torch."""
    import torch

    def multiply(up: Floats, down: Floats, out: Floats) -> None:
        torch.mm(torch.from_numpy(up), torch.from_numpy(down), out=torch.from_numpy(out))

    return multiply


def numpy_row_norms(rows: Floats) -> Floats:
    """Euclidean length of each row."""
    lengths: Floats = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float32))
    return lengths


def torch_row_norms() -> Callable[[Floats], Floats]:
    """The same with torch's own summation, hence PEFT's bits. Imports torch."""
    import torch

    def norms(rows: Floats) -> Floats:
        result: Floats = torch.linalg.norm(torch.from_numpy(rows), dim=1).numpy()
        return result

    return norms


class Arithmetic:
    """Which library multiplies and measures."""

    def __init__(self, *, exact_as_torch: bool) -> None:
        self.product: Product = torch_product() if exact_as_torch else numpy_product
        self.row_norms: Callable[[Floats], Floats] = torch_row_norms() if exact_as_torch else numpy_row_norms


class LoadedLowRank:
    """One weight's update, its small matrices in fp32."""

    def __init__(
        self, up: Floats, down: Floats, scale: float, *, transposed: bool, magnitude: Floats | None, name: str
    ) -> None:
        matrices = (up, down) if magnitude is None else (up, down, magnitude)
        if not all(np.isfinite(matrix).all() for matrix in matrices):
            raise CheckpointError(
                f"the adapter holds NaN or infinite values for {name}: its training diverged; "
                "merge an earlier checkpoint, or train again with a lower learning rate"
            )
        self.up, self.down, self.magnitude = up, down, magnitude
        self.scale = np.float32(scale)
        self.transposed = transposed

    def apply(self, values: Floats, first: int, sums: Floats, arithmetic: Arithmetic) -> None:
        """sums = values + scale · up @ down for the stored rows that begin at `first`, in PEFT's order of operations."""
        last = first + len(values)
        if self.transposed:
            columns = np.ascontiguousarray(self.down[:, first:last])
            product = aligned(sums.nbytes).view(np.float32).reshape(len(self.up), last - first)
            arithmetic.product(self.up, columns, product)
            np.copyto(sums, product.T)
        else:
            arithmetic.product(self.up[first:last], self.down, sums)
        np.multiply(sums, self.scale, out=sums)
        np.add(sums, values, out=sums)
        if self.magnitude is not None:
            factors = self.magnitude[first:last] / arithmetic.row_norms(sums)
            np.multiply(sums, factors[:, None], out=sums)


def share_of(share: Share, up: Floats, down: Floats) -> tuple[Floats, Floats]:
    """(up, down) of one matrix of one expert, from those of the stack."""
    rank, rows = len(down) // share.experts, len(up) // share.parts
    own = up.reshape(len(up), rank, share.experts)[share.part * rows : (share.part + 1) * rows, :, share.expert]
    return _aligned_copy(own), _aligned_copy(down[share.expert * rank : (share.expert + 1) * rank])


def _aligned_copy(values: Floats) -> Floats:
    copy: Floats = aligned(values.size * 4).view(np.float32).reshape(values.shape)
    np.copyto(copy, values)
    return copy


def to_fp32(raw: bytes, dtype: str, shape: tuple[int, ...]) -> Floats:
    """A whole small tensor as fp32; for the adapter's matrices."""
    source = np.frombuffer(raw, np.uint8)
    count = len(source) // (4 if dtype == "F32" else 2)
    return widen(source, dtype, aligned(count * 4).view(np.uint32)).reshape(shape)
