"""Which side of the split a row belongs to: by its file's name, as data sets on the hub have it, or by its column `split`. Pure.

Called by `sources`. `train-00000-of-00002.parquet`, `data/test.jsonl`, `main/validation-*.parquet`, `gsm8k_test.csv`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import chain, islice
from pathlib import PurePath

from steps.errors import DataError
from steps.prepare.read.files import Row, Side

COLUMN = "split"
LOOKED_ROWS = 512
"""So many of the first rows are looked at for that column."""

WORDS: dict[str, Side] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "validation",
    "testing": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "holdout": "validation",
    "heldout": "validation",
}
_WORD = re.compile(r"[a-z]+")


def side_of(path: PurePath) -> Side:
    """The side that the file's name says, else the nearest folder that says one; `path` is relative to the data set's folder.

    In a name the first word counts, or the last: `test-questions.jsonl` and `questions_test.jsonl`, not `my-test-answers.jsonl`.
    """
    for part in (path.name.split(".")[0], *reversed(path.parts[:-1])):
        words = _WORD.findall(part.lower())
        for word in (words[:1] + words[-1:]) if words else ():
            if word in WORDS:
                return WORDS[word]
    return ""


def split_column(rows: Iterator[Row], *, used: Collection[str]) -> tuple[str, str]:
    """The column that says on which side each row is, and what to say of it; empty where none tells both sides apart.

    `used`: columns that are parts of the conversation. All rows are read where the first ones have such a column.

    Raises:
        DataError: it names a side that is held out in some rows, and no side in others.
    """
    first = list(islice(rows, LOOKED_ROWS))
    named = (name for row in first for name in row.values if name.strip().lower() == COLUMN and name not in used)
    column = next(named, "")
    if not column:
        return "", ""
    found: Counter[str] = Counter()
    sides: Counter[Side] = Counter()
    stranger: Row | None = None
    for row in chain(first, rows):
        side = row_side(row, column)
        sides[side] += 1
        found.update([str(row.values[column])] if side == "validation" else [])
        stranger = stranger or (None if side else row)
    if sides["validation"] and stranger:
        raise DataError(
            f"{stranger.place}: its {column} is {stranger.values.get(column)!r:.60}, where other rows say {', '.join(found)}: "
            "expected train, validation or test in every row, or another name of the column"
        )
    if not sides["validation"] or not sides["train"]:
        return "", ""
    return (
        column,
        f"held out, never trained on: {found.total():,} rows whose {column} is {', '.join(sorted(found)[:5])}",
    )


def row_side(row: Row, column: str) -> Side:
    """What the row's column says."""
    value = row.values.get(column)
    return side_of(PurePath(value)) if isinstance(value, str) and value.strip() else ""
