"""A prepared directory written by hand: rows that count upwards, and a manifest that fits; for trainings in tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steps.protocol.prepared import DATA_FILES, MANIFEST, digest_files, sealed
from steps.protocol.records import PreparedData, digest_of

COUNTS = (
    *("samples", "train_samples", "duplicates", "skipped"),
    *("truncated_samples", "truncated_tokens", "tokens", "target_tokens"),
)
"""Of a record; no training reads them."""


def write_rows(path: Path, rows: Sequence[Sequence[int]], rng: np.random.Generator, vocabulary: int) -> None:
    """One row per entry, an entry being the lengths of the row's samples; a loss on each sample's second half."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {"input_ids": [], "loss_mask": [], "lengths": []}
    for lengths in rows:
        samples = [(int(rng.integers(vocabulary)) + 3 * np.arange(length)) % vocabulary for length in lengths]
        masks = [np.arange(length) >= length // 2 for length in lengths]
        columns["input_ids"].append(np.concatenate(samples).astype(np.int32))
        columns["loss_mask"].append(np.concatenate(masks).astype(np.uint8))
        columns["lengths"].append(np.array(lengths, dtype=np.int32))
    types = {"input_ids": pa.int32(), "loss_mask": pa.uint8(), "lengths": pa.int32()}
    table = pa.table({name: pa.array(values, pa.list_(types[name])) for name, values in columns.items()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def write_manifest(folder: Path, **facts: Any) -> str:
    """Describe and seal the data files in `folder`; returns their digest. `facts`: what of the record a training reads."""
    assert {path.name for path in folder.iterdir()} == set(DATA_FILES)
    files = digest_files(folder)
    record = PreparedData(
        path=str(folder), identity="prepared", digest=digest_of(files), fingerprint="f", source="test", shape="test",
        score="rouge_l", fill=1.0, **dict.fromkeys(COUNTS, 1), **facts,
    )  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(sealed({"record": record.to_dict(), "files": files})))
    return record.digest
