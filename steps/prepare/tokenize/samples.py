"""Source rows → tokenised samples, a chunk of rows at a time: values in, values out, so that processes can share the work.

Called by `collect`, in this process or in others (`workers`). Stores nothing.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from steps.errors import DataError
from steps.prepare import split
from steps.prepare.chat.answers import Rendered
from steps.prepare.chat.conversations import Conversation, to_conversation
from steps.prepare.chat.forms import Layout, find_layout, with_cases
from steps.prepare.chat.messages import Skip
from steps.prepare.chat.template import Refused
from steps.prepare.chat.written import WrittenOut
from steps.prepare.read.files import Row, Side
from steps.prepare.share import Share
from steps.prepare.tokenize.tokens import ChatTokenizer, Tokens
from steps.prepare.tokenize.words import ID_BYTES

TOO_LONG = "no token of an answer within the sequence length"
SCORED_ANSWERS = 200
"""Answers looked at to find the score that suits them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How rows become samples; small, and the same in every process."""

    model: Path
    """Folder with the tokenizer."""
    system: str
    sequence_length: int
    seed: int
    validation_fraction: float
    """0: as many as are enough."""
    chat_template: str = ""
    """Jinja, in the place of the tokenizer's own."""
    template_arguments: tuple[tuple[str, Any], ...] = ()
    may_differ: bool = True
    """A row that has another shape than its file's first ones is read by its own; not where shape or columns were named."""
    source: str = ""
    """Of a mixture: the source that the rows are from, told with each sample that may be held out."""


class Chunk(NamedTuple):
    """Rows of one file that are tokenised together."""

    layout: Layout
    rows: list[Row]
    below: float = 1.0
    """Samples at higher positions are not held out, unless the source says so."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that gives no sample."""

    reason: str
    place: str
    needed: int = 0
    """For TOO_LONG: the sequence length that would do."""
    side: Side = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A sample that may be held out, as evaluation reads it."""

    sample: int
    """Its place among the chunk's samples."""
    position: float
    json: str
    """An object with messages, prompt, prompt_ids and reference."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a chunk of rows became: samples in columns, in the rows' order.

    Bytes, since they pass between processes and into files as they are.
    """

    ids: bytes
    """All samples' tokens one after another, int32."""
    mask: bytes
    """The same for their loss masks, uint8; 1 where there is a loss."""
    lengths: bytes
    """Tokens, one int32 per sample."""
    targets: bytes
    """Tokens with a loss, one int32 per sample."""
    cut: bytes
    """Tokens cut off at the end, one int32 per sample."""
    keys: bytes
    """16 bytes per sample that stand for its content."""
    prompts: bytes
    """8 bytes per sample that stand for what comes before its last answer."""
    positions: bytes
    """One float64 per sample."""
    answers: tuple[str, ...]
    """The last answers of the first samples, SCORED_ANSWERS of them."""
    texts: tuple[Text, ...]
    """Of the samples that may be held out: at least one, if only for the case that no other is."""
    unusable: tuple[Unusable, ...]
    notes: tuple[tuple[str, int], ...]
    """What a person should know of the conversations, and of how many it is true."""
    ignored: frozenset[str]
    """Columns that no part of a conversation was taken from."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    row: Row
    conversation: Conversation
    rendered: Rendered


class SampleMaker:
    """Makes samples after one recipe."""

    def __init__(self, recipe: Recipe, tokenizer: ChatTokenizer | None = None) -> None:
        """Loads the tokenizer unless it is given.

        Raises:
            ModelError: there is no usable tokenizer.
        """
        self._recipe = recipe
        self._between = Share(recipe.validation_fraction).between
        self._tokenizer = tokenizer or ChatTokenizer.load(
            recipe.model, template=recipe.chat_template, arguments=dict(recipe.template_arguments)
        )
        self._layouts: dict[tuple[str, ...], Layout | None] = {}

    def make(self, chunk: Chunk) -> Made:
        """The samples in the rows' order, and the rows that give none."""
        unusable: list[Unusable] = []
        candidates: list[_Candidate] = []
        ignored: set[str] = set()
        for row in chunk.rows:
            layout = self._layout_of(row, chunk.layout)
            unused = row.values.keys() - layout.columns.values()
            if unused:
                layout = with_cases(layout, row.values)
                ignored |= unused - set(layout.columns.values())
            found = self._render(row, layout)
            (candidates if isinstance(found, _Candidate) else unusable).append(found)  # type: ignore[arg-type]
        encoded = self._tokenizer.encode([candidate.rendered for candidate in candidates])
        fitting: list[tuple[_Candidate, Tokens]] = []
        for candidate, tokens in zip(candidates, encoded, strict=True):
            if tokens.mask.find(1, 0, self._recipe.sequence_length) >= 0:
                fitting.append((candidate, tokens))
            else:
                unusable.append(Unusable(TOO_LONG, candidate.row.place, tokens.mask.find(1) + 1, candidate.row.side))
        return self._gather(fitting, chunk.below, tuple(unusable), frozenset(ignored))

    def _layout_of(self, row: Row, layout: Layout) -> Layout:
        """The file's, or the row's own where it has what another shape needs and not what the file's needs."""
        if layout.required <= row.values.keys() or not self._recipe.may_differ:
            return layout
        columns = tuple(row.values)
        if columns not in self._layouts:
            self._layouts[columns] = _own_layout(columns)
        return self._layouts[columns] or layout

    def _render(self, row: Row, layout: Layout) -> _Candidate | Unusable:
        conversation = to_conversation(row.values, layout, system=self._recipe.system)
        if isinstance(conversation, Skip):
            return Unusable(conversation.reason, row.place)
        try:
            conversation, notes = self._tokenizer.plain(conversation)
            rendered = self._tokenizer.render(conversation)
        except WrittenOut as error:
            return Unusable(str(error), row.place)
        except Refused as error:
            return Unusable(f"a conversation that the model's chat template refuses: {error}", row.place)
        return _Candidate(row, conversation, replace(rendered, notes=(*notes, *rendered.notes)) if notes else rendered)

    def _gather(
        self,
        fitting: Sequence[tuple[_Candidate, Tokens]],
        below: float,
        unusable: tuple[Unusable, ...],
        ignored: frozenset[str],
    ) -> Made:
        most = self._recipe.sequence_length
        masks = [tokens.mask[:most] for _, tokens in fitting]
        keys = [split.keys_of(candidate.conversation) for candidate, _ in fitting]
        positions = [self._position(prompt, it.row) for (_, prompt), (it, _) in zip(keys, fitting, strict=True)]
        return Made(
            ids=b"".join(tokens.ids[: ID_BYTES * most] for _, tokens in fitting),
            mask=b"".join(masks),
            lengths=array("i", map(len, masks)).tobytes(),
            targets=array("i", (mask.count(1) for mask in masks)).tobytes(),
            cut=array("i", (max(0, len(tokens.mask) - most) for _, tokens in fitting)).tobytes(),
            keys=b"".join(content for content, _ in keys),
            prompts=b"".join(prompt for _, prompt in keys),
            positions=array("d", positions).tobytes(),
            answers=tuple(self._reference(candidate) for candidate, _ in fitting[:SCORED_ANSWERS]),
            texts=tuple(self._texts([candidate for candidate, _ in fitting], positions, below)),
            unusable=unusable,
            notes=tuple(Counter(note for candidate, _ in fitting for note in candidate.rendered.notes).items()),
            ignored=ignored,
        )

    def _position(self, prompt: bytes, row: Row) -> float:
        return split.position(prompt, self._recipe.seed, self._between, row.side)

    def _reference(self, candidate: _Candidate) -> str:
        return self._tokenizer.reference(candidate.conversation, candidate.rendered)

    def _texts(self, candidates: Sequence[_Candidate], positions: Sequence[float], below: float) -> Iterator[Text]:
        lowest, below = min(positions, default=0.0), min(below, self._between)
        for sample, (candidate, position) in enumerate(zip(candidates, positions, strict=True)):
            if position < below or position == lowest:
                described = json.dumps(self._describe(candidate), ensure_ascii=False, default=str)
                yield Text(sample, position, described)

    def _describe(self, candidate: _Candidate) -> dict[str, Any]:
        conversation = candidate.conversation
        prompt = self._prompt(candidate)
        asked = [*conversation.asked, conversation.answer] if conversation.messages else []
        return {
            "messages": asked,
            "prompt": prompt,
            "prompt_ids": self._tokenizer.encode_prompt(prompt),
            "reference": self._reference(candidate),
            **({"tools": conversation.tools} if conversation.tools else {}),
            **({"source": self._recipe.source} if self._recipe.source else {}),
        }

    def _prompt(self, candidate: _Candidate) -> str:
        """As generation gives it; the text up to the answer where the template refuses that (the assistant speaks first)."""
        try:
            return self._tokenizer.prompt(candidate.conversation)
        except Refused:
            return candidate.rendered.text[: candidate.rendered.targets[-1][0]]


def _own_layout(columns: tuple[str, ...]) -> Layout | None:
    """The layout of a row that stands apart, if it has a question and an answer: a lone text is more likely a broken row."""
    try:
        layout = find_layout(columns)
    except DataError:
        return None
    return layout if layout.shape != "text" else None
