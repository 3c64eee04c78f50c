"""A data set on the Hugging Face hub, with the splits that it has for training and for validation.

Called by `sources`. Where a preset asks for the split `train`, as it does without a word, the data set's own validation and test
splits are held out; where it asks for any other, that one is all that is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from steps.errors import DataError
from steps.prepare.read.files import Row, Side
from steps.prepare.read.source import DataSource
from steps.prepare.read.splits import side_of
from steps.protocol.records import digest_of
from steps.settings.catalog import DatasetPreset

BATCH_ROWS = 512
TIMEOUT_S = 10.0


def open_hub(dataset: DatasetPreset, cache: Path) -> DataSource:
    """The data set of a preset's hub id.

    Raises:
        DataError: it cannot be loaded, or has no such split.
    """
    loaded = _load(dataset, cache)
    sides: dict[str, Side] = {dataset.split: ""}
    if dataset.split == "train":
        held_out = [split for split in loaded if side_of(PurePath(split)) == "validation"]
        sides = {"train": "train" if held_out else "", **dict.fromkeys(held_out, "validation")}
    splits = [(_name(dataset, split), loaded[split], side) for split, side in sides.items()]
    prints = [part._fingerprint for _, part, _ in splits]

    def rows() -> Iterator[Row]:
        before = 0
        for name, part, side in splits:
            for number, values in enumerate(_values(part), start=1):
                yield Row(values, name, number, before + number, side)
            before += len(part)

    return DataSource(
        _name(dataset, dataset.split),
        digest_of(["hub", dataset.hub, *prints]),
        sum(len(part) for _, part, _ in splits),
        rows,
        notes=_notes(loaded, sides),
        has_sides="validation" in sides.values(),
    )


def _name(dataset: DatasetPreset, split: str) -> str:
    return f"hub:{dataset.hub}{':' + dataset.config if dataset.config else ''}@{dataset.revision}/{split}"


def _notes(loaded: dict[str, Any], sides: dict[str, Side]) -> tuple[str, ...]:
    held_out = ", ".join(split for split, side in sides.items() if side == "validation")
    unread = ", ".join(sorted(set(loaded) - set(sides)))
    notes = [f"held out, never trained on: {held_out}"] if held_out else []
    return (*notes, *([f"splits that are not read: {unread}"] if unread else []))


def _values(part: Any) -> Iterator[dict[str, Any]]:
    for batch in part.iter(batch_size=BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _load(dataset: DatasetPreset, cache: Path) -> dict[str, Any]:
    """The data set's splits by name; only the one that is asked for where that is not `train`."""
    import datasets

    datasets.disable_progress_bars()
    split = None if dataset.split == "train" else dataset.split  # all splits of a data set are fetched in any case
    try:
        with _offline_where_silent(dataset):
            loaded: Any = datasets.load_dataset(
                dataset.hub,
                dataset.config or None,
                revision=dataset.revision,
                split=split,
                cache_dir=str(cache / "hub-datasets"),
            )
    except Exception as error:  # the library lets a dozen others' exceptions through: hub, http, arrow, builder
        raise DataError(_cannot_be_loaded(dataset, error)) from error
    if split:
        return {split: loaded}
    if "train" not in loaded:
        raise DataError(
            f"the hub data set {dataset.hub} has no split named train, but {', '.join(loaded)}: "
            "name one in a preset of your own (a file with `hub:` and `split:`, given as --dataset FILE.yaml)"
        )
    return dict(loaded)


def _cannot_be_loaded(dataset: DatasetPreset, error: Exception) -> str:
    config = f", configuration {dataset.config}" if dataset.config else ""
    several = "config name" in str(error).lower() and not dataset.config
    return (
        f"the hub data set {dataset.hub} (revision {dataset.revision}, split {dataset.split}{config}) cannot be loaded: "
        f"{type(error).__name__}: {str(error)[:300]}; "
        + (f"name one of its configurations: --dataset {dataset.hub}:NAME; " if several else "")
        + "check its name, the network and, if it is gated, HF_TOKEN; or give a local file"
    )


@contextlib.contextmanager
def _offline_where_silent(dataset: DatasetPreset) -> Iterator[None]:
    """A hub that does not answer one short question is left alone: a download would ask it again for half a minute.

    What was downloaded before is then still found. A refusal (gated, not there) is an answer: the download tells it.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from requests.exceptions import RequestException

    before = datasets.config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(dataset.hub, revision=dataset.revision, timeout=TIMEOUT_S)
    except HfHubHTTPError:
        pass
    except (RequestException, OSError):
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
