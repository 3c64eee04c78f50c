"""First pass: the source's rows become tokenised samples in a scratch folder; only lengths and keys stay in memory.

Called by `stage`. About 30 bytes per sample are kept in memory, so that it hardly grows with the data; the tokens of each
sample lie one after another in one file, and those of them that may be held out have their text in another.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steps.errors import DataError
from steps.plain_text import counted
from steps.prepare.chat.conversations import detect_score
from steps.prepare.chat.forms import PREFERENCE, Layout, find_layout, list_names
from steps.prepare.mix import SourcePart
from steps.prepare.read.files import Row
from steps.prepare.read.sources import sample
from steps.prepare.share import Share
from steps.prepare.split import Keys, Portion
from steps.prepare.tokenize.samples import SCORED_ANSWERS, TOO_LONG, Chunk, Made, Recipe, SampleMaker, Text, Unusable
from steps.prepare.tokenize.tokens import ChatTokenizer
from steps.prepare.tokenize.words import ID_BYTES
from steps.prepare.tokenize.workers import make_samples
from steps.settings.catalog import DatasetPreset
from steps.settings.plan import Plan

logger = logging.getLogger(__name__)

CHUNK_ROWS = 512
"""Rows tokenised together."""
NAMED_PLACES = 3
"""Skipped rows that are named, for each reason."""

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Samples:
    """What is known of the samples after the first pass, in the source's order. One number each per sample."""

    shape: str
    """Of all files, each name once."""
    score: str
    ids: Path
    """All samples' tokens, int32, one after another."""
    masks: Path
    """The same for their loss masks, uint8."""
    held_out: Path
    """A line for each sample that may be held out: its number, a space, and JSON {messages, prompt, prompt_ids, reference}."""
    lengths: npt.NDArray[np.int32]
    targets: Path
    """Tokens with a loss, int32, one per sample."""
    cut: Path
    """Tokens cut off at the end, int32, one per sample."""
    skipped: dict[str, int]
    """Reason → source rows that give no sample."""
    notes: tuple[str, ...]
    """What else a person should know of them."""
    portions: tuple[Portion, ...]
    """Of each source."""


def collect(
    parts: Sequence[SourcePart], plan: Plan, model: Path, tokenizer: ChatTokenizer, scratch: Path, *, progress: Progress
) -> tuple[Samples, Keys]:
    """Read, render and tokenise everything, one source after another; `tokenizer` is that of the folder `model`.

    Keys divide the samples; apart from `Samples`, since they are not needed for long.

    Raises:
        DataError: nothing readable, nothing usable, or all of it too long; says what was found.
        StorageError: the source cannot be read or the scratch folder not be written.
    """
    refuse = plan.settings.prepare.unusable_rows == "refuse"
    with _Store(plan, scratch) as store:
        for part in parts:
            source, data = part.source, part.dataset
            recipe = _recipe(plan, part, model)
            rows = sample(source, part.max_rows, plan.training.seed) if part.max_rows else source.rows()
            store.begin(source.name)
            for done, made in make_samples(store.noting(_chunks(rows, data)), SampleMaker(recipe, tokenizer)):
                store.take(made)
                progress(f"reading and tokenising{part.of_mixture}, {source.unit}", min(done, source.size), source.size)
            store.end(data.score, refuse=refuse)
        return store.finish()


def _recipe(plan: Plan, part: SourcePart, model: Path) -> Recipe:
    data = part.dataset
    return Recipe(
        model=model,
        system=data.system,
        sequence_length=plan.sequence_length,
        seed=plan.training.seed,
        validation_fraction=plan.validation_fraction,
        chat_template=plan.chat_template,
        template_arguments=tuple(sorted(plan.chat_template_kwargs.items())),
        may_differ=data.shape == "auto" and not data.columns,
        source=part.name,
    )


def _chunks(rows: Iterator[Row], dataset: DatasetPreset) -> Iterator[Chunk]:
    """A file's rows at a time, with the layout that its first ones show."""
    for _, of_file in groupby(rows, key=attrgetter("file")):
        first = list(islice(of_file, CHUNK_ROWS))
        layout = find_layout_of(first, dataset)
        yield Chunk(layout, first)
        while more := list(islice(of_file, CHUNK_ROWS)):
            yield Chunk(layout, more)


def find_layout_of(rows: Sequence[Row], dataset: DatasetPreset) -> Layout:
    """The shape of the first row that has one by itself, else of these rows together; with the columns of all.

    Raises:
        DataError: they fit no known shape, or not what the preset asks for.
    """
    together = {name for row in rows for name in row.values}
    for columns in dict.fromkeys(tuple(row.values) for row in rows):
        with contextlib.suppress(DataError):
            shape = find_layout(columns, shape=dataset.shape, columns=dataset.columns).shape
            return find_layout(together, shape=shape, columns=dataset.columns)
    try:
        return find_layout(together, shape=dataset.shape, columns=dataset.columns)
    except DataError as error:
        raise DataError(f"{rows[0].place}: {error}") from error


@dataclass(slots=True)
class _Skipped:
    """Rows that give no sample, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, unusable: Unusable) -> None:
        self.counts[unusable.reason] += 1
        named = self.places.setdefault(unusable.reason, [])
        if len(named) < NAMED_PLACES:
            named.append(unusable.place)

    def __str__(self) -> str:
        return "; ".join(
            f"{count:,} with {reason} ({', '.join(self.places[reason])}{', …' if count > NAMED_PLACES else ''})"
            for reason, count in self.counts.most_common()
        )


class _Store:
    """The open files and growing numbers of one pass over all sources."""

    def __init__(self, plan: Plan, scratch: Path) -> None:
        self._plan = plan
        self._paths = {name: scratch / name for name in ("ids", "masks", "held_out", "targets", "cut")}
        self._unmeasured = 0
        self._columns = {name: bytearray() for name in ("lengths", "keys", "prompts", "positions")}
        self._samples = 0
        self._all_skipped: Counter[str] = Counter()
        self._portions: list[Portion] = []
        self._shapes: dict[str, None] = {}
        self._notes: Counter[str] = Counter()
        self._ignored: set[str] = set()

    def __enter__(self) -> _Store:
        self._files = {name: path.open("wb") for name, path in self._paths.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def begin(self, source: str) -> None:
        """What follows is of this source."""
        self._source, self._first = source, self._samples
        self._share = Share(self._plan.validation_fraction)
        self._skipped, self._shortest_needed = _Skipped(), 0
        self._answers: list[str] = []
        self._spare: list[Text] = []

    def _below(self) -> float:
        return self._share.below(self._samples - self._first)

    def noting(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The chunks, their shapes remembered, each with the limit below which its samples may be held out."""
        for chunk in chunks:
            self._shapes[chunk.layout.shape] = None
            if chunk.rows[0].side:
                self._share = replace(self._share, has_sides=True)
            yield chunk._replace(below=self._below())

    def take(self, made: Made) -> None:
        """Store one chunk's samples."""
        for text in made.texts:
            self._note_text(replace(text, sample=self._samples + text.sample))
        self._files["ids"].write(made.ids)
        self._files["masks"].write(made.mask)
        self._files["targets"].write(made.targets)
        self._files["cut"].write(made.cut)
        for name, column in self._columns.items():
            column += getattr(made, name)
        self._samples += len(made.lengths) // ID_BYTES
        self._notes.update(dict(made.notes))
        self._ignored |= made.ignored
        self._answers += made.answers[: SCORED_ANSWERS - len(self._answers)]
        for unusable in made.unusable:
            self._skipped.add(unusable)
            self._unmeasured += bool(unusable.needed) and unusable.side == "validation"
            if unusable.needed:
                self._shortest_needed = min(self._shortest_needed or unusable.needed, unusable.needed)

    def _note_text(self, text: Text) -> None:
        """Write the text of a sample that may be held out; keep those that are if no other is: all with the lowest position."""
        if text.position < self._below():
            self._write_held_out(text)
            return
        lowest = self._spare[0].position if self._spare else 1.0
        if text.position < lowest:
            self._spare = [text]
        elif text.position == lowest:
            self._spare.append(text)

    def _write_held_out(self, text: Text) -> None:
        self._files["held_out"].write(b"%d %s\n" % (text.sample, text.json.encode()))

    def end(self, score: str, *, refuse: bool) -> None:
        """The source is read: complains of what was skipped, or refuses it."""
        source = self._source
        if self._samples == self._first:
            raise DataError(self._nothing_left(source))
        count = self._skipped.counts.total()
        if refuse and count:
            raise DataError(
                f"{source}: {counted(count, 'row')} cannot be used: {self._skipped}; "
                "prepare.unusable_rows is refuse: mend them or take them out, or set it to skip"
            )
        if count:
            logger.warning("%s: %s skipped: %s", source, counted(count, "row"), self._skipped)
        self._all_skipped += self._skipped.counts
        lowest = float(np.frombuffer(self._columns["positions"], dtype=np.float64)[self._first :].min())
        if lowest >= self._below():
            for text in self._spare:
                self._write_held_out(text)
        score = detect_score(self._answers) if score == "auto" else score
        self._portions.append(Portion(self._first, self._samples, self._share, source, score))

    def finish(self) -> tuple[Samples, Keys]:
        """Everything as arrays."""
        positions = np.frombuffer(self._columns["positions"], dtype=np.float64)
        samples = Samples(
            shape=", ".join(self._shapes),
            score=", ".join(dict.fromkeys(portion.score for portion in self._portions)),
            **self._paths,
            lengths=np.frombuffer(self._columns["lengths"], dtype=np.int32),
            skipped=dict(self._all_skipped),
            notes=tuple(self._said()),
            portions=tuple(self._portions),
        )
        contents, prompts = (np.frombuffer(self._columns[name], dtype) for name, dtype in _KEYS.items())
        return samples, Keys(contents, prompts, positions)

    def _said(self) -> Iterator[str]:
        if self._unmeasured:
            yield f"{counted(self._unmeasured, 'row')} to hold out left out: {TOO_LONG}"
        if self._ignored:
            yield f"columns that are not used: {list_names(self._ignored)}"
        if self._ignored.issuperset(PREFERENCE):
            yield "chosen and rejected are preference data, for DPO or a reward model: they are not used here"
        for note, count in self._notes.most_common():
            yield f"in {count:,} {'sample' if count == 1 else 'samples'} {note}"

    def _nothing_left(self, source: str) -> str:
        if not self._skipped.counts:
            return f"{source} holds no rows"
        if set(self._skipped.counts) == {TOO_LONG}:
            return (
                f"{source}: all rows are longer than the sequence: no answer begins within "
                f"sequence_length={self._plan.sequence_length} tokens; the shortest needs {self._shortest_needed}: "
                f"use --sequence-length {self._shortest_needed} or more"
            )
        return f"{source}: no usable conversation in any row: {self._skipped}"


_KEYS = {"keys": "V16", "prompts": "uint64"}
