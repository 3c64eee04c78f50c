"""Rows of a data file: JSON array, JSONL, CSV, TSV and Parquet, each read as a stream, so memory does not grow with it.

Called by `sources`. Errors name the file and the line. UTF-8 with or without a byte order mark, any line ending.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from steps.errors import DataError
from steps.protocol.rundir import storage_errors

LONGEST_FIELD = 2**31 - 1
BATCH_ROWS = 512
"""Rows of Parquet in memory at a time."""
PEEKED_BYTES = 64 * 1024
"""Enough to tell an array from lines of objects."""
EXPLAINED_BYTES = 256 * 2**20
"""A broken JSON array up to this size is read again, whole, to name the line."""


class Row(NamedTuple):
    """One source row and where it stands. A tuple, since rows pass between processes by the thousand."""

    values: dict[str, Any]
    file: str
    line: int
    """Line in the file, or number of the row where there are no lines; from 1."""
    done: int
    """How far the file has been read: bytes, or rows for Parquet."""

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.file}:{self.line}"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, by its suffix.

    Raises:
        DataError: empty, of another kind, broken, not UTF-8; with file and line.
        StorageError: it cannot be read.
    """
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: expected one of {', '.join(READERS)}, found {path.suffix or 'no suffix'}")
    with storage_errors(f"reading {path}"):
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes): expected rows")
        yield from READERS[path.suffix.lower()](path)


def file_size(path: Path) -> int:
    """What `Row.done` reaches at the end: bytes, or rows for Parquet."""
    if path.suffix.lower() != ".parquet":
        return path.stat().st_size
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        return int(pq.read_metadata(path).num_rows)


def _lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """(line number, bytes read, text) of each line."""
    done = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            done += len(raw)
            if number == 1:
                raw = _without_mark(path, raw)
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); "
                    "convert it: iconv -f WINDOWS-1252 -t UTF-8"
                ) from error
            if "\0" in text:
                raise DataError(f"{path}:{number}: holds NUL bytes: a damaged file, or one that is not text")
            yield number, done, text


def _without_mark(path: Path, raw: bytes) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: not UTF-8 but UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
    return raw.removeprefix(b"\xef\xbb\xbf")


def _read_json_lines(path: Path) -> Iterator[Row]:
    for number, done, text in _lines(path):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error}): expected one object per line") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {_kind(values)}")
        yield Row(values, str(path), number, done)


def _read_json(path: Path) -> Iterator[Row]:
    """A JSON array of objects; or, as many files named .json hold, one object per line."""
    with path.open("rb") as file:
        peeked = _without_mark(path, file.read(PEEKED_BYTES)).lstrip()
    line, _, rest = peeked.partition(b"\n")
    if peeked.startswith(b"["):
        yield from _read_array(path)
    elif peeked.startswith(b"{") and (_is_object(line) or (not rest and len(peeked) >= PEEKED_BYTES // 2)):
        rows = _read_json_lines(path)
        yield from _more_than_one(path, next(rows), rows)
    elif peeked.startswith(b"{"):
        raise DataError(f"{path}: holds one JSON object, expected an array of objects, or one object per line")
    else:
        for _ in _lines(path):  # says it better where the text is not UTF-8, or holds NUL
            pass
        raise DataError(f"{path}: expected a JSON array of objects, found {peeked[:40].decode(errors='replace')!r}")


def _more_than_one(path: Path, first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    second = next(rest, None)
    if second is None and any(isinstance(value, list | dict) for value in first.values.values()):
        raise DataError(
            f"{path}: holds one JSON object with the keys {', '.join(sorted(first.values))}, expected an array of objects; "
            "take the array out of it: jq .KEY"
        )
    yield first
    if second is not None:
        yield second
        yield from rest


def _read_array(path: Path) -> Iterator[Row]:
    import ijson

    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        try:
            for number, values in enumerate(ijson.items(file, "item", use_float=True), start=1):
                if not isinstance(values, dict):
                    raise DataError(f"{path}: row {number}: expected a JSON object, found {_kind(values)}")
                yield Row(values, str(path), number, file.tell())
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(_explain_array(path, error)) from error


def _explain_array(path: Path, error: Exception) -> str:
    """Where a JSON array is broken; ijson itself does not count lines."""
    for _ in _lines(path):  # says it better where the text is not UTF-8, or holds NUL
        pass
    if path.stat().st_size <= EXPLAINED_BYTES:
        try:
            json.loads(path.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError as found:
            return f"{path}:{found.lineno}: not valid JSON ({found.msg}, column {found.colno}): expected an array of objects"
        except RecursionError:
            pass
    return f"{path}: not valid JSON ({' '.join(str(error).split())[:120]}): expected an array of objects"


def _read_table(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        csv.field_size_limit(LONGEST_FIELD)  # the module's own limit of 128 KiB is less than a long document
        done = 0

        def feed() -> Iterator[str]:
            nonlocal done
            for _, done, text in _lines(path):  # noqa: B007 - `done` is read below
                yield text

        reader = csv.reader(feed(), delimiter=delimiter, strict=True)
        try:
            header = _checked_header(path, next(reader, []))
            for fields in reader:
                if fields:
                    yield Row(_matched(path, reader.line_num, header, fields), str(path), reader.line_num, done)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error

    return read


def _checked_header(path: Path, header: list[str]) -> list[str]:
    names = [name.strip() for name in header]
    if not any(names):
        raise DataError(f"{path}:1: expected a header with the names of the columns, found an empty line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}:1: column {twice[0]!r} stands twice in the header")
    return names


def _matched(path: Path, line: int, header: list[str], fields: list[str]) -> dict[str, str]:
    if len(fields) != len(header):
        raise DataError(
            f"{path}:{line}: expected {len(header)} fields ({', '.join(header)}), found {len(fields)}; "
            "fields that hold the delimiter or a line break need quotes"
        )
    return dict(zip(header, fields, strict=True))


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    number = 0
    with _parquet_errors(path), pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, str(path), number, number)


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """pyarrow's errors as DataError; they say which part of the file is damaged."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error)[:200]})") from error


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


Opener = Callable[[Path], Iterator[Row]]
READERS: dict[str, Opener] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".csv": _read_table(","),
    ".tsv": _read_table("\t"),
    ".parquet": _read_parquet,
}
"""Suffix → reader."""
