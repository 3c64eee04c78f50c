"""Rows of JSON: an array of objects, one object per line, or objects written over several lines, one after another.

Called by `files`. What the first bytes show decides, whichever of the suffixes the file has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from steps.errors import DataError
from steps.prepare.read.files import UTF8_MARK, Row, first_bytes, open_bytes, read_lines, utf16_of
from steps.prepare.read.json_objects import as_row, has_shape, is_lone_object, rows_in

PEEKED_BYTES = 64 * 1024
"""Enough to tell an array from lines of objects."""
DEEPEST = 500
"""Arrays in arrays at a file's start; the stream's reader keeps a path as long as the depth for each, gigabytes for 100,000."""
WHOLE_BYTES = 256 * 2**20
"""Up to this size a file that the stream's reader refuses is read whole: for `NaN`, and to name line and column."""


def read_json(path: Path) -> Iterator[Row]:
    """A JSON array of objects; or, as many files named .json hold, objects one after another."""
    peeked = _peek(path)
    if peeked.startswith((b"[", b"{")) or not peeked:
        yield from _read(path, peeked)
        return
    for _ in read_lines(path):  # says it better where the text is not Unicode, or holds NUL
        pass
    raise DataError(f"{path}: expected a JSON array of objects, found {peeked[:40].decode(errors='replace')!r}")


def read_json_lines(path: Path) -> Iterator[Row]:
    """One object per line; an array, or objects over several lines, are read as what they are."""
    peeked = _peek(path)
    is_array = peeked.startswith(b"[") and peeked[1:].lstrip()[:1] in (b"{", b"[", b"]")
    yield from _read(path, peeked) if is_array or not peeked.startswith(b"[") else _read_lines(path)


def _read(path: Path, peeked: bytes) -> Iterator[Row]:
    line, _, rest = peeked.partition(b"\n")
    if peeked.startswith(b"[") and not (rest.strip() and _is_json(line)):
        yield from _stream(path, "item")
        return
    rows = _stream(path, "") if _is_spread(peeked) else _read_lines(path)
    first = list(islice(rows, 2))
    yield from _inside(path, first[0]) if len(first) == 1 else chain(first, rows)


def _inside(path: Path, only: Row) -> Iterator[Row]:
    """The rows that a file's one object holds, or that object as a row.

    Raises:
        DataError: it holds something else.
    """
    try:
        found = rows_in(only.values)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if not found and is_lone_object(only.values):
        raise DataError(
            f"{path}: holds one JSON object with the keys {', '.join(sorted(only.values)[:20])}, expected an array of objects, "
            "one object per line, or an object with a list of them; take the rows out of it: jq .KEY"
        )
    for number, values in enumerate(found, start=1):
        yield Row(values, str(path), number, only.done)
    if not found:
        yield only


ABOUT = frozenset({"config", "info", "meta", "metadata", "stats", "summary"})
"""Names of files beside the data, where their one object is flat as a row is."""
LARGEST_DESCRIPTION = 2**20


def is_description(path: Path) -> bool:
    """Whether a .json file holds one object about the data set: neither a row nor rows in a wrapper."""
    if path.suffix.lower() != ".json" or path.stat().st_size > LARGEST_DESCRIPTION:
        return False
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or rows_in(values):
            return False
    except (DataError, ValueError, RecursionError):  # reading it names what is wrong
        return False
    return not has_shape(values) and (is_lone_object(values) or path.stem.lower() in ABOUT)


def _peek(path: Path) -> bytes:
    """The first bytes as UTF-8, without what stands before the text.

    Raises:
        DataError: arrays in arrays, more than any data has.
    """
    with open_bytes(path) as file:
        peeked = file.read(PEEKED_BYTES)
    encoding = utf16_of(peeked[:4])
    if encoding:
        peeked = peeked.decode(encoding, errors="ignore").encode(errors="ignore")
    peeked = peeked.removeprefix(UTF8_MARK).lstrip()
    if peeked[: 2 * DEEPEST].count(b"[") > DEEPEST and not peeked[:DEEPEST].strip(b"[ \t\r\n"):
        raise DataError(
            f"{path}:1: not valid JSON (nested too deep): expected an array of objects, or one object per line"
        )
    return peeked


def _is_spread(peeked: bytes) -> bool:
    """Whether the first object goes over several lines."""
    line, line_end, rest = peeked.partition(b"\n")
    return peeked.startswith(b"{") and bool(line_end and rest.strip()) and not _is_json(line) and _opens(line)


def _opens(line: bytes) -> bool:
    """A line that ends where an object written over several lines breaks."""
    return line.rstrip().endswith((b"{", b",", b"["))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(path: Path) -> Iterator[Row]:
    for number, done, text in read_lines(path):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error}): expected one object per line") from error
        if not isinstance(values := as_row(values), dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {_kind(values)}")
        yield Row(values, str(path), number, done)


def _stream(path: Path, prefix: str) -> Iterator[Row]:
    """The objects below `prefix` ('item': of an array; '': one after another), each with its number in the file."""
    import ijson

    number = 0
    with open_bytes(path) as file:
        try:
            for values in ijson.items(_as_utf8(file), prefix, use_float=True, multiple_values=not prefix):
                number += 1
                yield _row(path, number, values, file.tell() if file.seekable() else 0)
            return
        except (ijson.JSONError, UnicodeDecodeError) as error:
            whole = _read_whole(path, prefix, error)
    for index, values in enumerate(whole[number:], start=number + 1):
        yield _row(path, index, values, path.stat().st_size)


def _row(path: Path, number: int, values: Any, done: int) -> Row:
    if not isinstance(values := as_row(values), dict):
        raise DataError(f"{path}: row {number}: expected a JSON object, found {_kind(values)}")
    return Row(values, str(path), number, done)


def _as_utf8(file: BinaryIO) -> Any:
    """For ijson, which knows no byte order marks."""
    import codecs

    start = first_bytes(file, 4)
    if start[:3] == UTF8_MARK:
        file.read(3)
    encoding = utf16_of(start)
    return codecs.EncodedFile(file, "utf-8", encoding) if encoding else file


def _read_whole(path: Path, prefix: str, refused: Exception) -> list[Any]:
    """All rows at once, by a reader that also takes NaN; where it refuses them too, it knows the place.

    Raises:
        DataError: with line and column, where the file is not too large to be read again.
    """
    expected = "expected an array of objects" if prefix else "expected objects, one after another"
    lines = [text for _, _, text in read_lines(path)] if path.stat().st_size <= WHOLE_BYTES else []
    if not lines:
        raise DataError(f"{path}: not valid JSON ({' '.join(str(refused).split())[:120]}): {expected}") from refused
    text, decoder, rows, at = "".join(lines), json.JSONDecoder(), [], 0
    try:
        if prefix:
            found = decoder.decode(text)
            return found if isinstance(found, list) else [found]
        while text[at:].strip():
            at += len(text[at:]) - len(text[at:].lstrip())
            values, at = decoder.raw_decode(text, at)
            rows.append(values)
        return rows
    except json.JSONDecodeError as found:
        raise DataError(
            f"{path}:{found.lineno}: not valid JSON ({found.msg}, column {found.colno}): {expected}"
        ) from refused
    except RecursionError:
        raise DataError(f"{path}: not valid JSON (nested too deep): {expected}") from refused


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
