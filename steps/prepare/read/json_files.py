"""Rows of JSON: an array of objects, one object per line, or objects written over several lines, one after another.

Called by `files`. What the first bytes show decides, whichever of the suffixes the file has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from steps.errors import DataError
from steps.prepare.read.files import UTF8_MARK, Row, open_bytes, read_lines, utf16_of
from steps.prepare.read.json_objects import as_row, has_shape, is_lone_object, rows_in
from steps.prepare.read.json_stream import stream_values

PEEKED_BYTES = 64 * 1024
"""Enough to tell an array from lines of objects."""


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
        yield from _stream(path, in_array=True)
        return
    rows = _stream(path, in_array=False) if _is_spread(peeked) else _read_lines(path)
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
    """The first bytes as UTF-8, without what stands before the text."""
    with open_bytes(path) as file:
        peeked = file.read(PEEKED_BYTES)
    encoding = utf16_of(peeked[:4])
    if encoding:
        peeked = peeked.decode(encoding, errors="ignore").encode(errors="ignore")
    return peeked.removeprefix(UTF8_MARK).lstrip()


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


def _stream(path: Path, *, in_array: bool) -> Iterator[Row]:
    """The objects of an array, or one after another, each with its number in the file."""
    for number, (values, done) in enumerate(stream_values(path, in_array=in_array), start=1):
        yield _row(path, number, values, done)


def _row(path: Path, number: int, values: Any, done: int) -> Row:
    if not isinstance(values := as_row(values), dict):
        raise DataError(f"{path}: row {number}: expected a JSON object, found {_kind(values)}")
    return Row(values, str(path), number, done)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
