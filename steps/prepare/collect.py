"""First pass: the source's rows become tokenised samples in a scratch folder; only counts and keys stay in memory.

Called by `stage`. About 40 bytes per sample are kept in memory, so that it hardly grows with the data; the tokens of each
sample lie one after another in one file, and those of them that may be held out have their text in another.
"""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steps import presets
from steps.errors import DataError
from steps.prepare import conversations, split
from steps.prepare.conversations import Conversation, Layout, Skip
from steps.prepare.files import Row
from steps.prepare.sources import Source
from steps.prepare.template import Refused, Rendered
from steps.prepare.tokens import ChatTokenizer, Tokens

logger = logging.getLogger(__name__)

CHUNK_ROWS = 512
"""Rows tokenised together."""
SCORED_ANSWERS = 200
"""Answers looked at to find the score that suits them."""
NAMED_PLACES = 3
"""Skipped rows that are named, for each reason."""
TOO_LONG = "no token of an answer within the sequence length"

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Samples:
    """What is known of the samples after the first pass, in the source's order. One number each per sample."""

    layout: Layout
    score: str
    ids: Path
    """All samples' tokens, int32, one after another."""
    masks: Path
    """The same for their loss masks, uint8."""
    held_out: Path
    """JSON lines {sample, messages, prompt, prompt_ids, reference} of each sample that may be held out."""
    lengths: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    """Tokens with a loss."""
    cut: npt.NDArray[np.int32]
    """Tokens cut off at the end."""
    keys: npt.NDArray[np.void]
    positions: npt.NDArray[np.float64]
    skipped: dict[str, int]
    """Reason → source rows without a usable conversation."""


def collect(
    source: Source, plan: presets.Plan, tokenizer: ChatTokenizer, scratch: Path, *, progress: Progress
) -> Samples:
    """Read, render and tokenise everything.

    Raises:
        DataError: nothing readable, nothing usable, or all of it too long; says what was found.
        StorageError: the source cannot be read or the scratch folder not be written.
    """
    rows = iter(islice(source.rows(), plan.max_rows or None))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source.name} holds no rows")
    layout = _find_layout(first, plan.dataset)
    with _Pass(plan, tokenizer, layout, scratch) as done:
        pending = _with_first(first, rows)
        while chunk := list(islice(pending, CHUNK_ROWS)):
            done.take(chunk)
            progress("reading and tokenising", min(chunk[-1].done, source.size), source.size)
        return done.finish(source.name)


def _with_first(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _find_layout(row: Row, dataset: presets.DatasetPreset) -> Layout:
    try:
        return conversations.find_layout(row.values, shape=dataset.shape, columns=dataset.columns)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error


@dataclass(slots=True)
class _Skipped:
    """Rows without a usable conversation, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, row: Row) -> None:
        self.counts[reason] += 1
        named = self.places.setdefault(reason, [])
        if len(named) < NAMED_PLACES:
            named.append(row.place)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} with {reason} ({', '.join(self.places[reason])}{', …' if count > NAMED_PLACES else ''})"
            for reason, count in self.counts.most_common()
        )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sample on its way through one chunk."""

    row: Row
    conversation: Conversation
    rendered: Rendered


class _Pass:
    """The open files and growing numbers of one pass over the source."""

    def __init__(self, plan: presets.Plan, tokenizer: ChatTokenizer, layout: Layout, scratch: Path) -> None:
        self._plan, self._tokenizer, self._layout = plan, tokenizer, layout
        self._paths = {name: scratch / name for name in ("ids", "masks", "held_out")}
        self._skipped = _Skipped()
        self._shortest_needed = 0
        self._answers: list[str] = []
        self._lengths, self._targets, self._cut = array("i"), array("i"), array("i")
        self._keys, self._positions = bytearray(), array("d")
        self._spare: tuple[float, dict[str, Any]] | None = None

    def __enter__(self) -> _Pass:
        self._files = {name: path.open("wb") for name, path in self._paths.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def take(self, chunk: list[Row]) -> None:
        """Tokenise and store one chunk of rows."""
        candidates = [candidate for row in chunk if (candidate := self._render(row))]
        encoded = self._tokenizer.encode([candidate.rendered for candidate in candidates])
        for candidate, tokens in zip(candidates, encoded, strict=True):
            self._store(candidate, tokens)

    def _render(self, row: Row) -> _Candidate | None:
        turns = conversations.to_conversation(row.values, self._layout, system=self._plan.dataset.system)
        if isinstance(turns, Skip):
            self._skipped.add(turns.reason, row)
            return None
        try:
            return _Candidate(row, turns, self._tokenizer.render(turns))
        except Refused as error:
            self._skipped.add(f"a conversation that the model's chat template refuses: {error}", row)
            return None

    def _store(self, candidate: _Candidate, tokens: Tokens) -> None:
        limit = self._plan.sequence_length
        ids, mask = tokens.ids[:limit], tokens.mask[:limit]
        targets = int(np.count_nonzero(mask))
        if not targets:
            needed = int(tokens.mask.argmax()) + 1
            self._shortest_needed = min(self._shortest_needed or needed, needed)
            self._skipped.add(TOO_LONG, candidate.row)
            return
        self._files["ids"].write(ids.tobytes())
        self._files["masks"].write(mask.tobytes())
        self._lengths.append(len(ids))
        self._targets.append(targets)
        self._cut.append(len(tokens.ids) - len(ids))
        if len(self._answers) < SCORED_ANSWERS:
            self._answers.append(candidate.conversation[-1].content)
        self._place(candidate)

    def _place(self, candidate: _Candidate) -> None:
        """Note the sample's key and position, and its text if it may be held out."""
        plan, sample = self._plan, len(self._positions)
        key = split.content_key(candidate.conversation)
        position = split.position(key, plan.seed, plan.validation_fraction, _side(candidate.row))
        self._keys += key
        self._positions.append(position)
        if position < plan.validation_fraction:
            self._write_held_out(self._describe(sample, candidate))
        elif self._spare is None or position < self._spare[0]:  # held out if nothing else is
            self._spare = position, self._describe(sample, candidate)

    def _describe(self, sample: int, candidate: _Candidate) -> dict[str, Any]:
        prompt = candidate.rendered.prompt
        return {
            "sample": sample,
            "messages": [turn.to_dict() for turn in candidate.conversation],
            "prompt": prompt,
            "prompt_ids": self._tokenizer.encode_prompt(prompt),
            "reference": candidate.conversation[-1].content,
        }

    def _write_held_out(self, described: dict[str, Any]) -> None:
        self._files["held_out"].write(json.dumps(described, ensure_ascii=False).encode() + b"\n")

    def finish(self, source: str) -> Samples:
        """Everything as arrays; complains of what was skipped."""
        if not self._lengths:
            raise DataError(self._nothing_left(source))
        if self._skipped.counts:
            logger.warning("%s: %d rows skipped: %s", source, self._skipped.counts.total(), self._skipped)
        if self._spare and min(self._positions) >= self._plan.validation_fraction:
            self._write_held_out(self._spare[1])
        score = self._plan.dataset.score
        return Samples(
            layout=self._layout,
            score=conversations.detect_score(self._answers) if score == "auto" else score,
            **self._paths,
            lengths=np.frombuffer(self._lengths, dtype=np.int32),
            targets=np.frombuffer(self._targets, dtype=np.int32),
            cut=np.frombuffer(self._cut, dtype=np.int32),
            keys=np.frombuffer(self._keys, dtype="V16"),
            positions=np.frombuffer(self._positions, dtype=np.float64),
            skipped=dict(self._skipped.counts),
        )

    def _nothing_left(self, source: str) -> str:
        if set(self._skipped.counts) == {TOO_LONG}:
            return (
                f"{source}: all rows are longer than the sequence: no answer begins within "
                f"sequence_length={self._plan.sequence_length} tokens; the shortest needs {self._shortest_needed}: "
                f"use --sequence-length {self._shortest_needed} or more"
            )
        return f"{source}: no usable conversation in any row: {self._skipped}"


def _side(row: Row) -> split.Side:
    """What a built-in generator says about a row; in people's own data a column `split` means nothing here."""
    given = row.values.get("split") if row.file.startswith("builtin:") else ""
    return "validation" if given == "validation" else "train" if given == "train" else ""


class SampleReader:
    """Reads samples back from the scratch files by index: positional reads, so that nothing stays mapped in memory."""

    def __init__(self, samples: Samples) -> None:
        self._starts = np.concatenate(([0], np.cumsum(samples.lengths, dtype=np.int64)))
        self._ids = os.open(samples.ids, os.O_RDONLY)
        self._masks = os.open(samples.masks, os.O_RDONLY)

    def read(self, sample: int) -> tuple[bytes, bytes]:
        """(int32 ids, uint8 mask) as bytes."""
        start, end = int(self._starts[sample]), int(self._starts[sample + 1])
        return os.pread(self._ids, 4 * (end - start), 4 * start), os.pread(self._masks, end - start, start)

    def close(self) -> None:
        """Close both files."""
        os.close(self._ids)
        os.close(self._masks)
