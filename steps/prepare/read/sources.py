"""Where rows come from: a generator of ours, a file, a folder of files, objects in S3, or the hub. One stream of rows each.

Called by `mix`, `look` and `collect`.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steps import s3
from steps.errors import DataError
from steps.prepare.read import orders
from steps.prepare.read.files import Row, Side, format_of
from steps.prepare.read.formats import file_size, is_readable, read_rows, suffixes, unread
from steps.prepare.read.hub import open_hub
from steps.prepare.read.json_files import is_description
from steps.prepare.read.source import DataSource
from steps.prepare.read.splits import row_side, side_of, split_column
from steps.protocol.records import digest_file, digest_of
from steps.settings.catalog import DatasetPreset

BUILTIN = {"orders": (orders.VERSION, orders.generate_orders)}
ABOUT_DATA = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "license", "license.txt"}
)
"""Files of a cloned or saved data set that hold no rows."""
MOST_LISTED = 10
"""Files in a message."""


def open_source(dataset: DatasetPreset, cache: Path) -> DataSource:
    """Find the data set that a preset names; what is far away is brought to `cache` first.

    Raises:
        DataError: nothing there, nothing readable, or no such builtin.
        StorageError: S3 or the disk failed.
    """
    if dataset.builtin:
        return _open_builtin(dataset.builtin)
    if dataset.path:
        return _by_column(_open_files(dataset.path, Path(dataset.path)), dataset)
    if dataset.s3:
        return _by_column(_open_s3(dataset.s3, cache), dataset)
    if dataset.hub:
        return _by_column(open_hub(dataset, cache), dataset)
    raise DataError(f"data set {dataset.name!r} has no source: its preset needs one of builtin, path, s3 or hub")


def _by_column(source: DataSource, dataset: DatasetPreset) -> DataSource:
    """The source whose rows say in a column `split` on which side they are; where its files say so, they are obeyed."""
    if source.has_sides:
        return source
    column, note = split_column(source.rows(), used=dataset.columns.values())
    if not column:
        return source

    def rows() -> Iterator[Row]:
        for row in source.rows():
            side = row_side(row, column)
            yield row._replace(values={name: row.values[name] for name in row.values if name != column}, side=side)

    return replace(source, rows=rows, notes=(*source.notes, note), has_sides=True)


def sample(source: DataSource, count: int, seed: int) -> Iterator[Row]:
    """`count` of the source's rows, drawn by `seed`, in the source's order; of each side its share, and one at least.

    The source is read twice: nobody knows how many rows there are before.
    """
    sizes = Counter(row.side for row in source.rows())
    total = sum(sizes.values())
    drawn = {
        side: set(random.Random(f"{seed} {side}").sample(range(size), min(size, max(1, round(count * size / total)))))
        for side, size in sorted(sizes.items())
    }
    seen: Counter[Side] = Counter()
    for row in source.rows():
        if seen[row.side] in drawn[row.side]:
            yield row
        seen[row.side] += 1


def _open_builtin(name: str) -> DataSource:
    if name not in BUILTIN:
        raise DataError(f"there is no built-in data set {name!r}; there are {', '.join(BUILTIN)}")
    version, generate = BUILTIN[name]

    def rows() -> Iterator[Row]:
        for index, values in enumerate(generate(), start=1):
            side: Any = values.pop("split")
            yield Row(values, f"builtin:{name}", index, index, side)

    count = sum(1 for _ in generate())
    return DataSource(f"builtin:{name}", digest_of(["builtin", name, version]), count, rows, has_sides=True)


def _open_files(name: str, path: Path) -> DataSource:
    files, ignored = data_files(path)
    sides = [side_of(file.relative_to(path)) if path.is_dir() else "" for file in files]
    is_split = "validation" in sides
    sizes = [file_size(file) for file in files]
    before = [sum(sizes[:index]) for index in range(len(sizes))]

    def rows() -> Iterator[Row]:
        for start, file, side in zip(before, files, sides, strict=True):
            here: Side = (side or "train") if is_split else ""
            for row in read_rows(file):
                yield Row(row.values, row.file, row.line, start + row.done, here)

    held_out = [file for file, side in zip(files, sides, strict=True) if side == "validation"]
    if len(held_out) == len(files):
        raise DataError(
            f"{path} holds only files to test with ({_listed(held_out, path)}): none to train on; "
            "to train on one of them, give the file itself"
        )
    digests = [digest_file(file) for file in files]
    fingerprint = digest_of(["files", [list(pair) for pair in zip(digests, sides, strict=True)]])
    root = path if path.is_dir() else path.parent
    listed = tuple(f"{digest}  {file.relative_to(root)}" for digest, file in zip(digests, files, strict=True))
    notes = [f"held out, never trained on: {_listed(held_out, path)}"] if held_out else []
    notes += [f"files that are not read: {_listed(ignored, path)}"] if ignored else []
    used = sum(file.stat().st_size for file in files)
    unit = "rows" if {format_of(file) for file in files} == {".parquet"} else "bytes"
    return DataSource(
        name, fingerprint, sum(sizes), rows, bytes=used, files=listed, unit=unit, notes=tuple(notes), has_sides=is_split
    )


def data_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The file itself, or all data files in a folder and below, by name; and the files there that are not read.

    Hidden ones, and what a cloned data set has for people and tools, are neither.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        if not is_readable(path):
            raise DataError(f"{path}: {unread(path)}")
        return [path], []
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    found = sorted(path.rglob("*"))
    if lost := [file for file in found if file.is_symlink() and is_readable(file) and not file.exists()]:
        raise DataError(f"{path} holds links to files that are not there ({_listed(lost, path)}): fetch the data again")
    inside = [file for file in found if file.is_file()]
    shown = [file for file in inside if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)]
    data = [file for file in shown if file.name.lower() not in ABOUT_DATA and file.suffix.lower() not in (".md", ".py")]
    files = [file for file in data if is_readable(file)]
    files = [file for file in files if not is_description(file)] or files
    if not files:
        raise DataError(f"{path} holds no data file ({suffixes()}); found {_listed(inside, path) or 'nothing'}")
    return files, [file for file in data if file not in files]


def _listed(files: Sequence[Path], root: Path) -> str:
    names = [str(file.relative_to(root)) for file in files]
    return ", ".join(names[:MOST_LISTED]) + (
        f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    )


def _open_s3(address: str, cache: Path) -> DataSource:
    folder = cache / "data" / hashlib.sha256(address.encode()).hexdigest()[:16]
    # An object that changed in place, keeping its size, has another ETag: the folder's name follows all of them.
    found = [(item["Key"], item["Size"], item["ETag"]) for item in s3.list_objects(address)]
    folder = folder / digest_of(found)[:16]
    paths = s3.download(address, folder)
    return _open_files(address, paths[0] if len(paths) == 1 else folder)
