"""Second pass: samples become rows on disk, in the format that `steps.protocol.prepared` reads.

Called by `stage`, inside a directory that appears whole or not at all. Works in blocks, so memory stays small.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steps.prepare.collect import Samples
from steps.prepare.pack import Packing

BLOCK_TOKENS = 2**18
"""Tokens in one record batch: 1 MiB of ids."""
MAX_BLOCK_ROWS = 1024

Indices = npt.NDArray[np.int64]


class SampleReader:
    """Reads samples back from the scratch files by index: positional reads, so that nothing stays mapped in memory."""

    def __init__(self, samples: Samples) -> None:
        self._starts = np.concatenate(([0], np.cumsum(samples.lengths, dtype=np.int64)))
        self._ids = os.open(samples.ids, os.O_RDONLY)
        self._masks = os.open(samples.masks, os.O_RDONLY)

    def read(self, sample: int) -> tuple[bytes, bytes]:
        """(int32 ids, uint8 mask) as bytes."""
        start, end = int(self._starts[sample]), int(self._starts[sample + 1])
        return os.pread(self._ids, 4 * (end - start), 4 * start), os.pread(self._masks, end - start, start)

    def close(self) -> None:
        """Close both files."""
        os.close(self._ids)
        os.close(self._masks)


def write_rows(
    path: Path, rows: Packing, reader: SampleReader, *, row_tokens: int, progress: Callable[[int], None]
) -> None:
    """Write the rows of `rows` (indices into all samples) as one Arrow file; `row_tokens`: most tokens in a row."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("loss_mask", pa.list_(pa.uint8())),
            ("lengths", pa.list_(pa.int32())),
        ]
    )
    block = max(1, min(MAX_BLOCK_ROWS, BLOCK_TOKENS // row_tokens))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for first in range(0, rows.rows, block):
            bounds = rows.starts[first : first + block + 1]
            writer.write_batch(pa.record_batch(_columns(rows.members, bounds, reader), schema=schema))
            progress(min(first + block, rows.rows))


def _columns(members: Indices, bounds: Indices, reader: SampleReader) -> list[object]:
    """The three list columns of one batch: rows `members[bounds[r]:bounds[r + 1]]`."""
    import pyarrow as pa

    ids, masks = zip(*(reader.read(sample) for sample in members[bounds[0] : bounds[-1]].tolist()), strict=True)
    lengths = np.fromiter((len(mask) for mask in masks), dtype=np.int32, count=len(masks))
    sample_ends = (bounds - bounds[0]).astype(np.int32)
    token_ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[sample_ends].astype(np.int32)
    return [
        _lists(token_ends, b"".join(ids), pa.int32()),
        _lists(token_ends, b"".join(masks), pa.uint8()),
        _lists(sample_ends, lengths.tobytes(), pa.int32()),
    ]


def _lists(ends: npt.NDArray[np.int32], values: bytes, kind: Any) -> object:
    """A list column over the bytes as they are: `pa.array` of a numpy array imports pandas, which takes longer than it all."""
    import pyarrow as pa

    count, flat = len(ends) - 1, len(values) * 8 // kind.bit_width
    inside = pa.Array.from_buffers(kind, flat, [None, pa.py_buffer(values)])
    return pa.Array.from_buffers(pa.list_(kind), count, [None, pa.py_buffer(ends.tobytes())], children=[inside])


def write_held_out(path: Path, samples: Samples, chosen: Indices) -> None:
    """Copy the texts of the samples `chosen`, in that order, from the scratch file."""
    with samples.held_out.open("rb") as source, path.open("wb") as target:
        numbers, offsets = _texts_in(source)
        for at in np.searchsorted(numbers, chosen).tolist():
            source.seek(offsets[at])
            target.write(source.readline())


def _texts_in(lines: Iterable[bytes]) -> tuple[array[int], array[int]]:
    """The number of each sample whose text is there, ascending, and where its text begins, behind that number."""
    numbers, offsets, offset = array("q"), array("q"), 0
    for line in lines:
        number, blank, _ = line.partition(b" ")
        numbers.append(int(number))
        offsets.append(offset + len(number + blank))
        offset += len(line)
    return numbers, offsets
