"""JSON values out of a file of any size: the items of one array, or values one after another. A window of text moves along it.

Called by `json_files`. Each value is read by Python's own decoder, which also takes NaN, ends at a depth of about a thousand and
knows the place of a mistake; here is only where one value ends and the next begins.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from steps.errors import DataError
from steps.prepare.read.files import first_bytes, open_bytes, read_lines, utf16_of

PIECE_BYTES = 2**18
LARGEST_VALUE = 2**28
"""Characters of one row: what is longer is more likely a quote that does not close."""
NEAR_END = 16
"""A mistake that is nearer to the window's end may only be the window's end: no token but a string is longer."""
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def stream_values(path: Path, *, in_array: bool) -> Iterator[tuple[Any, int]]:
    """(value, bytes read so far) for each item of the array that the file holds, or for each value in it.

    Raises:
        DataError: not valid JSON, with line and column; nested too deep; not Unicode.
    """
    expected = "expected an array of objects" if in_array else "expected objects, one after another"
    with open_bytes(path) as file:
        window = _Window(file)
        try:
            for value in window.items() if in_array else window.values():
                yield value, window.done
        except UnicodeDecodeError as error:
            for _ in read_lines(path):  # names line and column
                pass
            raise DataError(f"{path}: not Unicode ({error})") from error
        except json.JSONDecodeError as error:
            line, column = window.place(error.pos)
            told = "a NUL byte: a damaged file, or one that is not text" if window.is_nul(error.pos) else error.msg
            raise DataError(f"{path}:{line}: not valid JSON ({told}, column {column}): {expected}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
            line, column = window.place(window.at)
            told = "nested too deep" if isinstance(error, RecursionError) else str(error)
            raise DataError(f"{path}:{line}: not valid JSON ({told}, column {column}): {expected}") from error


class _Window:
    """The part of the file that is looked at: from the value that is read next on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(utf16_of(first_bytes(file, 4)) or "utf-8-sig")()
        self._text = ""
        self._line = self._column = 1
        """Of the window's first character."""
        self.at = 0
        self.done = 0

    def values(self) -> Iterator[Any]:
        """All values, with or without white space between them."""
        while found := self._next():
            if found == ",":
                raise json.JSONDecodeError("a comma behind an object", self._text, self.at)
            yield self._value()

    def items(self) -> Iterator[Any]:
        """Those of the one array."""
        self._take("[")
        if self._next() != "]":
            yield self._value()
            while self._next() != "]":
                self._take(",")
                self._next()
                yield self._value()
        self._take("]")
        if self._next():
            raise json.JSONDecodeError("Extra data", self._text, self.at)

    def place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1, of a place in the window."""
        before = self._text[:at]
        lines = before.count("\n")
        return self._line + lines, at - before.rfind("\n") if lines else self._column + at

    def is_nul(self, at: int) -> bool:
        return "\0" in self._text[max(0, at - 1) : at + 1]

    def _next(self) -> str:
        """The next character that is no white space; empty at the file's end."""
        while True:
            self.at = _SPACE.match(self._text, self.at).end()  # type: ignore[union-attr]  # it matches everywhere
            if self.at < len(self._text) or not self._more():
                return self._text[self.at : self.at + 1]

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise json.JSONDecodeError(f"Expecting {character!r}", self._text, self.at)
        self.at += 1

    def _value(self) -> Any:
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - NEAR_END
                if not is_cut or len(self._text) > LARGEST_VALUE or not self._more():
                    raise
                continue
            return value

    def _more(self) -> bool:
        """Another piece of the file at the window's end, as long as what is there, so that a long value is not read often."""
        self._line, self._column = self.place(self.at)
        self._text, self.at = self._text[self.at :], 0
        raw = self._file.read(max(PIECE_BYTES, len(self._text)))
        self.done += len(raw)
        self._text += self._decoder.decode(raw, final=not raw)
        return bool(raw)
