"""Prepared data on disk: the rows, the order of the whole run, and the held-out samples, as `prepare` leaves them.

    prepared-<identity>/
        rows.arrow          training rows: input_ids list<int32>, loss_mask list<uint8>, lengths list<int32> (samples in the row)
        order.npy           int64, (steps × global batch,): the row at each position of the run
        validation.arrow    held-out samples, one per row, same columns
        held_out.jsonl      the same samples in the same order: messages, prompt, prompt_ids, reference
        manifest.json       the PreparedData record, digests of the files above, reasons of skipped rows, chat template with
                            its arguments (chat_template, chat_template_kwargs), a seal

Written by `prepare`, read by `train` and `evaluate`. Arrow files are memory-mapped: opening is quick, a row costs microseconds,
and all processes on a node share the pages. Importing this module loads neither numpy nor pyarrow.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import StorageError
from steps.protocol.records import PreparedData, digest_file, digest_of
from steps.protocol.run_options import how_to_continue
from steps.protocol.rundir import read_json, storage_errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ROWS, ORDER, VALIDATION, HELD_OUT, MANIFEST = (
    "rows.arrow",
    "order.npy",
    "validation.arrow",
    "held_out.jsonl",
    "manifest.json",
)
DATA_FILES = (ROWS, ORDER, VALIDATION, HELD_OUT)
IGNORED_LABEL = -100
"""The label of a token without loss, as torch's cross-entropy has it."""


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One row of the model's input."""

    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    """The same ids where there is a loss, else IGNORED_LABEL; not shifted."""
    lengths: npt.NDArray[np.int32]
    """Tokens of each sample in the row, in order; they add up to the row's."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One held-out sample as evaluation uses it."""

    messages: tuple[dict[str, Any], ...]
    prompt: str
    """The text that the model continues: the conversation up to its last answer, template applied."""
    prompt_ids: tuple[int, ...]
    reference: str
    """The last answer."""
    source: str = ""
    """Of a mixture: the source that it is from."""


class ArrowRows:
    """Rows of one memory-mapped Arrow file."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            StorageError: missing, or not an Arrow file.
        """
        import pyarrow as pa

        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"cannot read {path} ({error}): {prepare_again(path.parent)}") from error
        self._batches = [self._file.get_batch(index) for index in range(self._file.num_record_batches)]
        self._ends: list[int] = []
        for batch in self._batches:
            self._ends.append((self._ends[-1] if self._ends else 0) + batch.num_rows)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> PreparedRow:
        """The row at `index`; its `input_ids` and `lengths` are views into the file, its `labels` a fresh array.

        Raises:
            IndexError: outside 0..len-1.
        """
        import numpy as np

        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        at = bisect.bisect_right(self._ends, index)
        batch = self._batches[at]
        offset = index - (self._ends[at] - batch.num_rows)
        ids, mask, lengths = (batch.column(column)[offset].values.to_numpy() for column in range(3))
        return PreparedRow(ids, np.where(mask != 0, ids, np.int32(IGNORED_LABEL)), lengths)


def prepare_again(folder: Path) -> str:
    """What to do about prepared data that cannot be used: `resume` would take over the step that made it."""
    return f"`{how_to_continue(folder.parent)}` sets it aside and prepares it again"


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """Everything in one prepared directory."""

    record: PreparedData
    rows: ArrowRows
    order: npt.NDArray[np.int64]
    """(steps × global batch,), read-only: global step k uses order[k·B : (k+1)·B]."""
    validation: ArrowRows
    path: Path

    @classmethod
    def open(cls, path: Path) -> PreparedRows:
        """Open without reading the rows; call `verify` first where damage must be found.

        Raises:
            StorageError: a file is missing or unreadable.
        """
        import numpy as np

        try:
            order = np.load(path / ORDER, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {path / ORDER} ({error}): {prepare_again(path)}") from error
        return cls(read_record(path), ArrowRows(path / ROWS), order, ArrowRows(path / VALIDATION), path)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> PreparedRow:
        """The training row at `index`."""
        return self.rows.row(index)

    def held_out(self) -> Iterator[HeldOut]:
        """The held-out samples, in the order of `validation`.

        Raises:
            StorageError: the file is missing or damaged.
        """
        path = self.path / HELD_OUT
        try:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    raw: dict[str, Any] = json.loads(line)
                    messages, prompt_ids = tuple(raw["messages"]), tuple(raw["prompt_ids"])
                    yield HeldOut(messages, raw["prompt"], prompt_ids, raw["reference"], raw.get("source", ""))
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(f"cannot read {path} ({error}): {prepare_again(path.parent)}") from error


def read_record(path: Path) -> PreparedData:
    """The record in a prepared directory's manifest; its `path` is where the directory is now.

    Raises:
        StorageError: missing, damaged, or of another schema.
    """
    raw = read_json(path / MANIFEST)
    try:
        return PreparedData.from_dict({**raw["record"], "path": str(path)})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StorageError(f"{path / MANIFEST} is not a manifest of prepared data: {error}") from error


def digest_files(path: Path) -> dict[str, str]:
    """File name → SHA-256 of each data file in the directory."""
    return {name: digest_file(path / name) for name in DATA_FILES}


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the digest of all its other values, so that `verify` sees a change in the manifest itself."""
    return {**manifest, "seal": digest_of(manifest)}


def verify(path: Path) -> PreparedData:
    """Read every file and compare it with the manifest's digests.

    Raises:
        StorageError: names each file that is missing or was changed.
    """
    record = read_record(path)
    manifest = read_json(path / MANIFEST)
    seal, expected = manifest.pop("seal", None), manifest.get("files", {})
    if seal != digest_of(manifest) or digest_of(expected) != record.digest:
        raise StorageError(f"{path / MANIFEST} was changed: its values do not give its digest; {prepare_again(path)}")
    damaged = []
    for name in DATA_FILES:
        if not (path / name).is_file():
            damaged.append(f"{name} is missing")
            continue
        with storage_errors(f"reading {path / name}"):
            if digest_file(path / name) != expected.get(name):
                damaged.append(f"{name} was changed ({(path / name).stat().st_size} bytes)")
    if damaged:
        raise StorageError(f"prepared data in {path} is damaged: {'; '.join(damaged)}; {prepare_again(path)}")
    return record
