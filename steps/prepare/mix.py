"""Several data sets as one: how many rows of each are read, how many samples are trained on, in which order they are held out.

Called by `stage`. A weight is a share of the training samples. Each source gives as many samples as its weight allows before the
first of them has none left, so that none is seen twice in an epoch; without weights all samples are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steps.errors import DataError
from steps.plain_text import counted
from steps.prepare.read.source import DataSource
from steps.prepare.read.sources import open_source
from steps.prepare.split import Division, Keys, Portion
from steps.protocol.records import digest_of
from steps.settings.catalog import DatasetPreset
from steps.settings.mixture import source_names
from steps.settings.plan import Plan

HAIR = 1e-9
"""Rounding: 0.7 / 1.0 of ten is seven."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SourcePart:
    """A source, and what is wanted of it."""

    source: DataSource
    dataset: DatasetPreset
    name: str = ""
    """In a mixture, as it is given; empty: it is the only one."""
    weight: float = 0.0
    """Share of the training samples; 0: all of its samples."""
    max_rows: int = 0
    """Rows that are read of it, drawn by the seed; 0: all."""

    @property
    def of_mixture(self) -> str:
        """Which one it is, for the line of progress."""
        return f" {self.name}" if self.name else ""


def open_parts(plan: Plan, cache: Path) -> tuple[list[SourcePart], DataSource]:
    """The sources of the plan's data, and what they are together.

    Raises:
        DataError: as `open_source`; two sources are the same.
        StorageError: S3 or the disk failed.
    """
    if not plan.dataset.mixture:
        source = open_source(plan.dataset, cache)
        return [SourcePart(source, plan.dataset, max_rows=plan.max_rows)], source
    weights = [part.weight or 0.0 for part in plan.dataset.mixture]
    parts = [
        SourcePart(open_source(part.preset, cache), part.preset, name, weight / (sum(weights) or 1), part.max_rows or 0)
        for part, name, weight in zip(plan.dataset.mixture, source_names(plan.dataset), weights, strict=True)
        if part.preset
    ]
    _refuse_twins(parts)
    parts = _capped(parts, plan.max_rows)
    return parts, _together(parts)


def _refuse_twins(parts: Sequence[SourcePart]) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        if part.source.fingerprint in seen:
            twin = seen[part.source.fingerprint]
            raise DataError(f"{twin} and {part.name} hold the same data: name it once, with the sum of the weights")
        seen[part.source.fingerprint] = part.name


def _capped(parts: Sequence[SourcePart], most: int) -> list[SourcePart]:
    """With `--max-rows` divided by the weights, or by the rows that there are; 0: not divided."""
    if not most:
        return list(parts)
    sizes = [part.weight or _row_count(part.source) for part in parts]
    caps = [max(2, math.ceil(most * size / sum(sizes) - HAIR)) if sum(sizes) else most for size in sizes]
    return [replace(part, max_rows=min(cap, part.max_rows or cap)) for part, cap in zip(parts, caps, strict=True)]


def _row_count(source: DataSource) -> int:
    return source.size if source.unit == "rows" else sum(1 for _ in source.rows())


def _together(parts: Sequence[SourcePart]) -> DataSource:
    """All that the identity and the record want to know of the mixture; its rows are read part by part."""
    wanted = [[*_wanted(part), part.weight, part.max_rows] for part in parts]
    units = {part.source.unit for part in parts}
    return DataSource(
        name=" + ".join(f"{part.weight:.3g} × {part.name}" if part.weight else part.name for part in parts),
        fingerprint=digest_of(["mixture", wanted]),
        size=sum(part.source.size for part in parts),
        rows=lambda: (row for part in parts for row in part.source.rows()),
        bytes=sum(part.source.bytes for part in parts),
        files=tuple(file for part in parts for file in part.source.files),
        unit=units.pop() if len(units) == 1 else "rows",
        notes=tuple(f"{part.name}: {note}" for part in parts for note in part.source.notes),
    )


def _wanted(part: SourcePart) -> list[object]:
    data = part.dataset
    return [part.source.fingerprint, data.shape, data.columns, data.system, data.score]


def mixed(
    parts: Sequence[SourcePart], division: Division, keys: Keys, portions: Sequence[Portion]
) -> tuple[Division, list[str]]:
    """The samples that are used of each source, and what a person should know of those that are not.

    Training samples of a source are left out from the highest position in [0, 1) down, so by seed and content alone. Held-out
    samples take turns, so that the first n of them have one of each source, and else its weight's share.

    Raises:
        DataError: a source has no sample to train on.
    """
    if len(parts) == 1:
        return division, []
    train = [_within(division.train, portion) for portion in portions]
    counts = [len(indices) for indices in train]
    for part, count in zip(parts, counts, strict=True):
        if not count:
            raise DataError(
                f"{part.name}: none of its samples is left to train on: other sources or the held-out side have them all"
            )
    wanted = _counts([part.weight for part in parts], counts)
    train = [_lowest(indices, count, keys) for indices, count in zip(train, wanted, strict=True)]
    turns = _in_turn([_within(division.validation, portion) for portion in portions], wanted)
    notes = [
        f"{counted(there - used, 'training sample')} of {part.name} not used, for the weights"
        for part, there, used in zip(parts, counts, wanted, strict=True)
        if there > used
    ]
    return replace(division, train=np.concatenate(train), validation=turns), notes


def _within(indices: Indices, portion: Portion) -> Indices:
    """Those of the portion, in their order."""
    return indices[(indices >= portion.first) & (indices < portion.end)]


def _counts(weights: Sequence[float], there: Sequence[int]) -> list[int]:
    """Samples used of each source, in the ratio of the weights, as many as there are of the scarcest; at least one."""
    if not all(weights):
        return list(there)
    whole = min(count / weight for count, weight in zip(there, weights, strict=True))
    return [min(count, max(1, int(whole * weight + HAIR))) for count, weight in zip(there, weights, strict=True)]


def _lowest(indices: Indices, count: int, keys: Keys) -> Indices:
    """As many of them as are wanted, in the source's order."""
    order = np.lexsort((keys.prompts[indices], keys.positions[indices]))
    return np.sort(indices[order[:count]])


def _in_turn(held_out: Sequence[Indices], weights: Sequence[float]) -> Indices:
    """One of each source first, then each as often as its weight says."""
    turns = np.concatenate([np.arange(len(found)) / weight for found, weight in zip(held_out, weights, strict=True)])
    source = np.repeat(np.arange(len(held_out)), [len(found) for found in held_out])
    return np.concatenate(list(held_out))[np.lexsort((source, turns))]


def of_sources(parts: Sequence[SourcePart], portions: Sequence[Portion], division: Division) -> list[dict[str, Any]]:
    """What the record tells of each source of a mixture."""
    if len(parts) == 1:
        return []
    return [
        {
            "name": part.name,
            "source": part.source.name,
            "weight": part.weight,
            "fingerprint": part.source.fingerprint,
            "score": portion.score,
            "train_samples": len(_within(division.train, portion)),
            "validation_samples": len(_within(division.validation, portion)),
        }
        for part, portion in zip(parts, portions, strict=True)
    ]
