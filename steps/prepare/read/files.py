"""Rows of a data file, each format as a stream, so memory does not grow with it; text may be compressed (.gz, .zst).

Called by `sources`. Errors name the file and the line. Any line ending. Text is UTF-8; or UTF-16, where a byte order mark or
the first letters say so.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from steps.errors import DataError
from steps.protocol.rundir import storage_errors

BATCH_ROWS = 512
"""Rows of Parquet in memory at a time."""
COMPRESSED = (".gz", ".zst")
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
OTHER_KINDS = {
    b"PK\x03\x04": "a zip file or an Excel workbook: unpack it, or save the sheet as CSV UTF-8",
    b"PAR1": "Parquet: rename it to end with .parquet",
    b"\x1f\x8b": "gzip: rename it to end with .gz",
    b"\x28\xb5\x2f\xfd": "zstd: rename it to end with .zst",
}
"""First bytes of files that are no text, and what to do."""

Side = Literal["", "train", "validation"]
"""What a source itself says about a row; empty: nothing."""


class Row(NamedTuple):
    """One source row and where it stands. A tuple, since rows pass between processes by the thousand."""

    values: dict[str, Any]
    file: str
    line: int
    """Line in the file, or number of the row where there are no lines; from 1."""
    done: int
    """How far the file has been read: bytes, or rows for Parquet."""
    side: Side = ""

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.file}:{self.line}"


def format_of(path: Path) -> str:
    """The suffix that says how a file is read, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return (
        suffixes[-2] if suffixes[-1:] and suffixes[-1] in COMPRESSED and len(suffixes) > 1 else "".join(suffixes[-1:])
    )


def is_readable(path: Path) -> bool:
    """Whether a file of this name holds rows that can be read."""
    return format_of(path) in _readers() and not (format_of(path) == ".parquet" and _is_compressed(path))


def suffixes() -> str:
    """What a data file's name may end with, for people."""
    return ", ".join(_readers()) + " (text also with .gz or .zst)"


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
        yield from _readers()[format_of(path)](path)


def file_size(path: Path) -> int:
    """What `Row.done` reaches at the end: bytes, or rows for Parquet; at least that where the file is compressed."""
    if format_of(path) != ".parquet":
        return path.stat().st_size
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        return int(pq.read_metadata(path).num_rows)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is compressed.

    Raises:
        DataError: it is not what its suffix says.
    """
    try:
        with _opened(path) as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); fetch it again") from error
    except OSError as error:
        if path.suffix.lower() == ".zst" and error.errno is None:
            raise DataError(f"{path}: not a whole zstd file ({str(error)[:120]}); fetch it again") from error
        raise


def _opened(path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)  # type: ignore[return-value]  # of the same methods
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 2**20)
    return path.open("rb")


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


def read_lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """(line number, bytes read, text) of each line.

    Raises:
        DataError: not UTF-8 and not UTF-16 with a byte order mark, or NUL bytes; with line and column.
    """
    with open_bytes(path) as file:
        start = first_bytes(file, 4)
        if told := next((what for mark, what in OTHER_KINDS.items() if start.startswith(mark)), None):
            raise DataError(f"{path}: expected text, found {told}")
        encoding = utf16_of(start)
        lines = _utf16_lines(path, file, encoding) if encoding else _utf8_lines(path, file)
        for number, done, text in lines:
            if "\0" in text:
                column = text.index("\0") + 1
                raise DataError(
                    f"{path}:{number}: holds NUL bytes (column {column}): a damaged file, or one that is not text"
                )
            yield number, done, text


def first_bytes(file: BinaryIO, count: int) -> bytes:
    """The next bytes, which stay to be read."""
    peeked: bytes = file.peek(count)[:count]  # type: ignore[attr-defined]  # all that open_bytes gives have it
    return peeked


def utf16_of(start: bytes) -> str:
    """The encoding of a text that begins so, if it is UTF-16: by its byte order mark, or by the zeros of its first letters."""
    if start[:2] in UTF16_MARKS:
        return "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in start)
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros, "")


def _utf8_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, str]]:
    done = 0
    for number, raw in enumerate(file, start=1):
        done += len(raw)
        try:
            yield number, done, (raw.removeprefix(UTF8_MARK) if number == 1 else raw).decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); "
                f"if a spreadsheet wrote it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{format_of(path)}"
            ) from error


def _utf16_lines(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[int, int, str]]:
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    done = 2
    try:
        for number, line in enumerate(text, start=1):
            done += 2 * len(line)
            yield number, done, line
    except UnicodeError as error:
        raise DataError(f"{path}: begins as UTF-16 and is not ({error}); save it as UTF-8") from error
    finally:
        text.detach()


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


Opener = Callable[[Path], Iterator[Row]]


def _readers() -> dict[str, Opener]:
    """Suffix → reader."""
    from steps.prepare.read import json_files, tables

    return {
        ".json": json_files.read_json,
        ".jsonl": json_files.read_json_lines,
        ".ndjson": json_files.read_json_lines,
        ".csv": tables.read_table,
        ".tsv": tables.read_table,
        ".parquet": _read_parquet,
    }
