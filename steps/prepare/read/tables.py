"""Rows of CSV and TSV, as programs and spreadsheets write them: another separator, a `sep=` line, an index column, empty lines.

Called by `files`. How the table is written is decided by its first records, and by nothing that they leave open.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from steps.errors import DataError
from steps.prepare.read.files import Row, format_of, read_lines

LONGEST_FIELD = 2**31 - 1
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
LOOKED_LINES = 200
"""Of the file's beginning, to see how it is written."""
LOOKED_RECORDS = 20
QUOTES_HINT = "fields that hold the separator or a line break need quotes, and a quote inside quotes is written twice"

RETURNS_HINT = (
    "if each line ends with a carriage return alone, as older programs write them: tr '\\r' '\\n' < FILE > new.csv"
)


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a table is written."""

    delimiter: str
    escapes: bool = False
    """Quotes inside quotes are written with a backslash, not twice."""

    def reader(self, lines: Iterable[str]) -> Any:
        if self.escapes:
            return csv.reader(lines, delimiter=self.delimiter, escapechar="\\", doublequote=False, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, strict=True)


def read_table(path: Path) -> Iterator[Row]:
    """The rows below the header.

    Raises:
        DataError: no header, a column twice, a record with more or fewer fields, quotes that do not close; with the line.
    """
    csv.field_size_limit(LONGEST_FIELD)  # the module's own limit of 128 KiB is less than a long document
    dialect, skipped = _look(path)
    position = [0, 0]
    reader = dialect.reader(_feed(path, skipped, position))
    try:
        header = _header(path, skipped + 1, next((fields for fields in reader if any(map(str.strip, fields))), []))
        for fields in reader:
            if any(field.strip() for field in fields):
                yield Row(_matched(path, position[0], header, fields), str(path), position[0], position[1])
    except csv.Error as error:
        hint = RETURNS_HINT if "new-line" in str(error) else QUOTES_HINT
        raise DataError(f"{path}:{position[0]}: not valid CSV ({error}); {hint}") from error


def _feed(path: Path, skipped: int, position: list[int]) -> Iterator[str]:
    """The lines for the csv module; `position` tells line and bytes of the last one."""
    for number, done, text in read_lines(path):
        position[:] = number, done
        if number > skipped:
            yield text


def _look(path: Path) -> tuple[_Dialect, int]:
    """The dialect, and the lines before the header: Excel's `sep=;` is one."""
    first = [text for _, _, text in islice(read_lines(path), LOOKED_LINES)]
    told = first[0].strip().strip('"') if first else ""
    if told.lower().startswith("sep=") and len(told) == 5:
        return _Dialect(told[-1], escapes=_escapes(first[1:], told[-1])), 1
    usual = "\t" if format_of(path) == ".tsv" else ","
    delimiter = max(SEPARATORS, key=lambda separator: (*_fit(first, separator), separator == usual))
    return _Dialect(delimiter, escapes=_escapes(first, delimiter)), 0


def _fit(lines: list[str], delimiter: str) -> tuple[bool, int]:
    """Whether the first records agree on several fields; and the number of fields in the header."""
    plain, escaped = (_widths(lines, _Dialect(delimiter, escapes)) for escapes in (False, True))
    return _agree(plain) or _agree(escaped), plain[0] if plain else 0


def _widths(lines: list[str], dialect: _Dialect) -> list[int]:
    """Fields of each of the first records, empty ones left out; -1 for one that cannot be read so."""
    reader, found = dialect.reader(lines), []
    try:
        for fields in islice(reader, LOOKED_RECORDS):
            found += [len(fields)] if any(fields) else []
    except csv.Error:
        if reader.line_num < len(lines) or len(lines) < LOOKED_LINES:  # else the record goes on below these lines
            found.append(-1)
    return found


def _agree(widths: list[int]) -> bool:
    return len(set(widths)) == 1 and widths[0] > 1


def _escapes(lines: list[str], delimiter: str) -> bool:
    """Backslashes before quotes are meant only where the table cannot be read without that."""
    if not any('\\"' in line for line in lines):
        return False
    plain, escaped = (_widths(lines, _Dialect(delimiter, escapes)) for escapes in (False, True))
    return not _agree(plain) and _agree(escaped)


def _header(path: Path, line: int, header: list[str]) -> list[str]:
    """Names of the columns. One without a name, a data frame's index or what a spreadsheet left, is called after its place."""
    names = [name.strip() for name in header]
    if not any(names):
        raise DataError(f"{path}:{line}: expected a header with the names of the columns, found only empty lines")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path}:{line}: column {twice[0]!r} stands twice in the header")
    return [name or f"(column {place})" for place, name in enumerate(names, start=1)]


def _matched(path: Path, line: int, header: list[str], fields: list[str]) -> dict[str, str]:
    while len(fields) > len(header) and not fields[-1].strip():
        fields = fields[:-1]  # separators that a spreadsheet puts behind the last column
    if len(fields) != len(header):
        raise DataError(
            f"{path}:{line}: expected {len(header):,} fields ({', '.join(header[:20])}{', …' if len(header) > 20 else ''}), "
            f"found {len(fields):,}; {QUOTES_HINT}"
        )
    return dict(zip(header, fields, strict=True))
