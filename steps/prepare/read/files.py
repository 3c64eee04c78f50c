"""A data file's bytes and lines, as a stream, unpacked where it is compressed (.gz, .zst); and what a row is.

Called by the readers of each format (`json_files`, `tables`). Errors name the file and the line. Any line ending. Text is UTF-8;
or UTF-16, where a byte order mark or the first letters say so.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from steps.errors import DataError

COMPRESSED = (".gz", ".zst")
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
WEB_PAGE = "a web page: a download that needs a login, or an address that is none of data; fetch it again"
OTHER_KINDS = {
    b"PK\x03\x04": "a zip file or an Excel workbook: unpack it, or save the sheet as CSV UTF-8",
    b"PAR1": "Parquet: rename it to end with .parquet",
    b"\x1f\x8b": "gzip: rename it to end with .gz",
    b"\x28\xb5\x2f\xfd": "zstd: rename it to end with .zst",
    b"version https://git-lfs": "a pointer of Git LFS in the place of the data: git lfs pull",
    b"<!doctype": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"<?xml": WEB_PAGE,
}
"""First bytes of files that are something else than their names say, in lower case where they are text; and what to do."""

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


def read_lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """(line number, bytes read, text) of each line.

    Raises:
        DataError: not UTF-8 and not UTF-16 with a byte order mark, or NUL bytes; with line and column.
    """
    with open_bytes(path) as file:
        start = first_bytes(file, 4)
        encoding = utf16_of(start)
        lines = _utf16_lines(path, file, encoding) if encoding else _utf8_lines(path, file)
        for number, done, text in lines:
            if "\0" in text:
                column = text.index("\0") + 1
                raise DataError(
                    f"{path}:{number}: holds NUL bytes (column {column}): a damaged file, or one that is not text"
                )
            yield number, done, text


def check_kind(path: Path) -> None:
    """Whether the file's first bytes are those of something else than its name says.

    Raises:
        DataError: names what it is, and what to do.
    """
    with open_bytes(path) as file:
        start = first_bytes(file, 32)
    for mark, what in OTHER_KINDS.items():
        if start.startswith(mark) or start.lower().startswith(mark):
            expected = format_of(path)[1:]
            if not (mark == b"PAR1" and expected == "parquet"):
                raise DataError(f"{path}: expected {expected}, found {what}")


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
            unpacker = "zstdcat" if path.suffix.lower() == ".zst" else "zcat"
            bytes_of = f"{unpacker} {shlex.quote(str(path))} | " if path.suffix.lower() in COMPRESSED else ""
            given = "" if bytes_of else f" {shlex.quote(str(path))}"
            raise DataError(
                f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); if a spreadsheet or an "
                f"older program wrote it: {bytes_of}iconv -f WINDOWS-1252 -t UTF-8{given} > utf8{format_of(path)} "
                "(WINDOWS-1252: western Europe; CP1251: Cyrillic; GB18030: Chinese; SHIFT_JIS: Japanese)"
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
        if not file.closed:  # who stops in the middle may have closed it
            text.detach()
