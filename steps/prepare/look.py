"""A look at a data set's first rows, before a model is fetched for it: can it be read, do its columns fit, is any row usable?

Called where a command begins, for files that are here (`look_at_files`), and by the flow's `start` for every source (`look`).
`prepare` reads all of it, with the tokenizer, and has the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from steps.errors import ConfigError, DataError, Problem, StorageError
from steps.prepare.chat.conversations import to_conversation
from steps.prepare.chat.messages import Skip
from steps.prepare.collect import find_layout_of
from steps.prepare.read.files import Row
from steps.prepare.read.formats import read_rows
from steps.prepare.read.sources import data_files, open_source
from steps.settings.catalog import DatasetPreset

ROWS = 64
"""Of each file, for its columns."""
FILES = 8
"""Of a folder: the first by name."""
MOST_ROWS = 20_000
"""Of each file, until one is usable: a second's work."""
MOST_REASONS = 3


def look(dataset: DatasetPreset, cache: Path) -> None:
    """Bring the data set here, where it is far away, and look at its first rows.

    Raises:
        DataError: it cannot be read, its columns fit no shape, it holds no rows, or none of them is a conversation.
        StorageError: S3 or the disk failed.
    """
    for one in dataset.sources:
        if one.path:
            _look(_files(Path(one.path)), one, one.path)
        else:
            source = open_source(one, cache)
            _look([source.rows()], one, source.name)


def look_at_files(dataset: DatasetPreset) -> None:
    """The same for files on this machine; others are not looked at.

    Raises:
        ConfigError: as `look`, as a mistake in --dataset.
    """
    problems = []
    for one in dataset.sources:
        try:
            if one.path:
                _look(_files(Path(one.path)), one, one.path)
        except (DataError, StorageError) as error:
            problems.append(Problem("--dataset", str(error)))
    if problems:
        raise ConfigError(problems)


def _files(path: Path) -> Iterator[Iterator[Row]]:
    return map(read_rows, data_files(path)[0][:FILES])


def _look(files: Iterable[Iterator[Row]], dataset: DatasetPreset, name: str) -> None:
    """Judge the columns of each file, and read on until a row is usable."""
    reasons: dict[str, str] = {}
    is_found = is_usable = False
    for rows in files:
        first = list(islice(rows, ROWS))
        if first:
            is_found = True
            layout = find_layout_of(first, dataset)
            for number, row in enumerate(chain(first, rows), start=1):
                if is_usable:
                    break
                skip = to_conversation(row.values, layout, system=dataset.system)
                is_judged = layout.required <= row.values.keys() and number < MOST_ROWS
                if is_judged and isinstance(skip, Skip):
                    reasons.setdefault(skip.reason, row.place)
                else:
                    is_usable = True
    if not is_found:
        raise DataError(f"{name} holds no rows")
    if not is_usable:
        told = "; ".join(f"{reason} ({place})" for reason, place in list(reasons.items())[:MOST_REASONS])
        raise DataError(f"{name}: no usable conversation in any row: {told}")
