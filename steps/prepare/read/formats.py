"""Rows of a data file, whichever format its name tells: each a stream, so memory does not grow with the file.

Called by `sources`. Text formats have readers of their own (`json_files`, `tables`); Parquet is read here.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steps.errors import DataError
from steps.prepare.read.files import COMPRESSED, Row, check_kind, format_of
from steps.prepare.read.json_files import read_json, read_json_lines
from steps.prepare.read.tables import read_table
from steps.protocol.rundir import storage_errors

BATCH_ROWS = 512
"""Rows of Parquet in memory at a time."""


def is_readable(path: Path) -> bool:
    """Whether a file of this name holds rows that can be read."""
    is_packed = path.suffix.lower() in COMPRESSED
    return format_of(path) in READERS and not (format_of(path) in BINARY and is_packed)


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
        raise DataError(f"{path}: {unread(path)}")
    with storage_errors(f"reading {path}"):
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes): expected rows")
        check_kind(path)
        yield from READERS[format_of(path)](path)


REMEDIES = {
    ".txt": "write each text as a row: jq -cR '{text: .}' FILE > FILE.jsonl (one per line)",
    ".xlsx": "save the sheet as CSV UTF-8",
    ".xls": "save the sheet as CSV UTF-8",
    ".zip": "unpack it: unzip FILE",
    ".tar": "unpack it: tar -xf FILE",
    ".tgz": "unpack it: tar -xf FILE",
    ".bz2": "unpack it: bunzip2 -k FILE",
    ".xz": "unpack it: xz -dk FILE",
    ".7z": "unpack it: 7z x FILE",
    "": "name it after what it holds",
}
"""Suffix → what makes such a file readable."""


def unread(path: Path) -> str:
    """Why a file of this name is not read, and what to do."""
    suffix = ".tar" if ".tar" in path.suffixes else path.suffix.lower()
    remedy = REMEDIES.get(format_of(path), REMEDIES.get(suffix, "export the rows as JSONL, CSV or Parquet"))
    found = "".join(path.suffixes[-2:]) or "no suffix"
    return f"expected a file with one of {suffixes()}, found {found}: {remedy.replace('FILE', shlex.quote(path.name))}"


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


def _read_arrow(path: Path) -> Iterator[Row]:
    """What `save_to_disk` of the library datasets writes, a stream of batches; or a file with an index, as Feather is."""
    import pyarrow as pa

    number = 0
    with _parquet_errors(path, "Arrow"), pa.OSFile(str(path)) as file:
        for batch, done in _arrow_batches(pa.ipc, file):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for values in batch.slice(start, BATCH_ROWS).to_pylist(maps_as_pydicts="lossy"):
                    number += 1
                    yield Row(values, str(path), number, done)


def _arrow_batches(ipc: Any, file: Any) -> Iterator[tuple[Any, int]]:
    """(batch, bytes read so far); those of a file with an index are about equally large."""
    is_indexed = file.read(6) == b"ARROW1"
    file.seek(0)
    if not is_indexed:
        yield from ((batch, file.tell()) for batch in ipc.open_stream(file))
        return
    indexed = ipc.open_file(file)
    for index in range(indexed.num_record_batches):
        yield indexed.get_batch(index), file.size() * (index + 1) // indexed.num_record_batches


@contextlib.contextmanager
def _parquet_errors(path: Path, kind: str = "Parquet") -> Iterator[None]:
    """pyarrow's errors as DataError; they say which part of the file is damaged, or which value Python cannot hold."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the file's
            raise
        raise DataError(f"{path}: not a readable {kind} file ({str(error)[:200]})") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".jsonlines": read_json_lines,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
"""Suffix → reader."""
BINARY = (".parquet", ".arrow", ".feather")
