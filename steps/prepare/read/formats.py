"""Rows of a data file, whichever format its name tells: each a stream, so memory does not grow with the file.

Called by `sources`. Text formats have readers of their own (`json_files`, `tables`); Parquet is read here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from steps.errors import DataError
from steps.prepare.read.files import COMPRESSED, Row, format_of
from steps.prepare.read.json_files import read_json, read_json_lines
from steps.prepare.read.tables import read_table
from steps.protocol.rundir import storage_errors

BATCH_ROWS = 512
"""Rows of Parquet in memory at a time."""


def is_readable(path: Path) -> bool:
    """Whether a file of this name holds rows that can be read."""
    is_packed = path.suffix.lower() in COMPRESSED
    return format_of(path) in READERS and not (format_of(path) == ".parquet" and is_packed)


def suffixes() -> str:
    """What a data file's name may end with, for people."""
    return ", ".join(READERS) + " (text also with .gz or .zst)"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, by its suffix.

    Raises:
        DataError: empty, of another kind, broken, not Unicode; with file and line.
        StorageError: it cannot be read.
    """
    if not is_readable(path):
        raise DataError(f"{path}: expected one of {suffixes()}, found {''.join(path.suffixes) or 'no suffix'}")
    with storage_errors(f"reading {path}"):
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes): expected rows")
        yield from READERS[format_of(path)](path)


def file_size(path: Path) -> int:
    """What `Row.done` reaches at the end: bytes, or rows for Parquet; at least that where the file is compressed."""
    if format_of(path) != ".parquet":
        return path.stat().st_size
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        return int(pq.read_metadata(path).num_rows)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    number = 0
    with _parquet_errors(path), pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for values in batch.to_pylist(maps_as_pydicts="lossy"):
                number += 1
                yield Row(values, str(path), number, number)


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """pyarrow's errors as DataError; they say which part of the file is damaged."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error)[:200]})") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": _read_parquet,
}
"""Suffix → reader."""
