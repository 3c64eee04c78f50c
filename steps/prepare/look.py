"""A look at a data set's first rows, before a model is fetched for it: can it be read, and do its columns fit?

Called where a command begins, for files that are here (`look_at_files`), and by the flow's `start` for every source (`look`).
`prepare` reads all of it, with the tokenizer, and has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from steps.errors import ConfigError, DataError, Problem, StorageError
from steps.prepare.collect import find_layout_of
from steps.prepare.read.files import Row
from steps.prepare.read.formats import read_rows
from steps.prepare.read.sources import data_files, open_source
from steps.settings.catalog import DatasetPreset

ROWS = 64
"""Of each file."""
FILES = 8
"""Of a folder: the first by name."""


def look(dataset: DatasetPreset, cache: Path) -> None:
    """Bring the data set here, where it is far away, and look at its first rows.

    Raises:
        DataError: it cannot be read, its columns fit no shape, or it holds no rows.
        StorageError: S3 or the disk failed.
    """
    for rows in _first_rows(dataset, cache):
        find_layout_of(rows, dataset)


def look_at_files(dataset: DatasetPreset) -> None:
    """The same for files on this machine; others are not looked at.

    Raises:
        ConfigError: as `look`, as a mistake in --dataset.
    """
    try:
        for rows in _of_files(Path(dataset.path)) if dataset.path else ():
            find_layout_of(rows, dataset)
    except (DataError, StorageError) as error:
        raise ConfigError([Problem("--dataset", str(error))]) from error


def _first_rows(dataset: DatasetPreset, cache: Path) -> Iterator[Sequence[Row]]:
    if dataset.path:
        yield from _of_files(Path(dataset.path))
        return
    source = open_source(dataset, cache)
    rows = list(islice(source.rows(), ROWS))
    if not rows:
        raise DataError(f"{source.name} holds no rows")
    yield rows


def _of_files(path: Path) -> Iterator[Sequence[Row]]:
    found = False
    for file in data_files(path)[0][:FILES]:
        if rows := list(islice(read_rows(file), ROWS)):
            found = True
            yield rows
    if not found:
        raise DataError(f"{path} holds no rows")
