from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from steps.errors import StorageError
from steps.protocol import prepared
from steps.protocol.prepared import ArrowRows, PreparedRows
from steps.protocol.records import PreparedData, digest_of


def write_arrow(path: Path, rows: list[list[int]], *, per_batch: int = 2) -> None:
    import pyarrow as pa

    kinds = {"input_ids": pa.int32(), "loss_mask": pa.uint8(), "lengths": pa.int32()}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in kinds.items()])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for first in range(0, len(rows), per_batch):
            part = rows[first : first + per_batch]
            columns = [part, [[token % 2 for token in row] for row in part], [[len(row)] for row in part]]
            writer.write_batch(
                pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
            )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prepared data written by hand."""
    write_arrow(tmp_path / prepared.ROWS, [[1, 2], [3], [4, 5, 6], [7], [8, 9]])
    write_arrow(tmp_path / prepared.VALIDATION, [[1, 3]])
    np.save(tmp_path / prepared.ORDER, np.array([4, 2, 0, 1], dtype=np.int64))
    held_out = {"messages": [{"role": "user", "content": "a"}], "prompt": "a", "prompt_ids": [1], "reference": "é"}
    (tmp_path / prepared.HELD_OUT).write_text(json.dumps(held_out) + "\n")
    files = prepared.digest_files(tmp_path)
    record = PreparedData(
        path="/elsewhere", identity="i", digest=digest_of(files), fingerprint="f", source="s", shape="alpaca", score="rouge_l",
        samples=6, train_samples=5, validation_samples=1, duplicates=0, skipped=0, truncated_samples=0, truncated_tokens=0,
        rows=5, tokens=9, target_tokens=5, sequence_length=4, packed=False, fill=0.45, steps=2, global_batch=2,
    )  # fmt: skip
    (tmp_path / prepared.MANIFEST).write_text(json.dumps(prepared.sealed({"record": record.to_dict(), "files": files})))
    return tmp_path


def test_rows_are_read_by_index_over_batch_borders(folder: Path) -> None:
    found = PreparedRows.open(folder)
    assert [found.row(index).input_ids.tolist() for index in range(len(found))] == [[1, 2], [3], [4, 5, 6], [7], [8, 9]]
    assert found.row(2).labels.tolist() == [-100, 5, -100]
    assert found.row(2).lengths.tolist() == [3]
    assert found.row(2).labels.dtype == found.row(2).input_ids.dtype == np.int32
    assert found.order.tolist() == [4, 2, 0, 1]
    assert found.validation.row(0).input_ids.tolist() == [1, 3]
    [sample] = found.held_out()
    assert (sample.prompt_ids, sample.reference) == ((1,), "é")
    assert found.record.path == str(folder)


@pytest.mark.parametrize("index", [-1, 5])
def test_a_row_outside_is_an_index_error(folder: Path, index: int) -> None:
    with pytest.raises(IndexError, match="of 5"):
        ArrowRows(folder / prepared.ROWS).row(index)


def test_whole_data_verify(folder: Path) -> None:
    assert prepared.verify(folder).rows == 5


@pytest.mark.parametrize("name", prepared.DATA_FILES)
def test_every_damaged_or_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(StorageError, match=f"{name} was changed"):
        prepared.verify(folder)
    (folder / name).unlink()
    with pytest.raises(StorageError, match=f"{name} is missing"):
        prepared.verify(folder)


def test_a_manifest_that_was_edited_or_is_of_another_kind_is_refused(folder: Path) -> None:
    raw = json.loads((folder / prepared.MANIFEST).read_text())
    for edited in ({**raw, "files": {}}, {**raw, "record": {**raw["record"], "steps": 3}}):
        (folder / prepared.MANIFEST).write_text(json.dumps(edited))
        with pytest.raises(StorageError, match="was changed"):
            prepared.verify(folder)
    (folder / prepared.MANIFEST).write_text("{}")
    with pytest.raises(StorageError, match="not a manifest"):
        prepared.verify(folder)


@pytest.mark.parametrize("name", [prepared.ROWS, prepared.ORDER, prepared.VALIDATION])
def test_opening_a_damaged_file_says_what_to_do(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"no")
    with pytest.raises(StorageError, match=r"--continue-from .* prepares it again"):
        PreparedRows.open(folder)


def test_held_out_lines_that_are_damaged_are_an_error(folder: Path) -> None:
    found = PreparedRows.open(folder)
    (folder / prepared.HELD_OUT).write_text("{")
    with pytest.raises(StorageError, match=r"--continue-from .* prepares it again"):
        list(found.held_out())


def test_the_module_itself_is_light() -> None:
    import subprocess

    code = "import sys, steps.protocol.prepared; print([n for n in ('numpy', 'pyarrow', 'torch') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
