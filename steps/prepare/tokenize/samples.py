"""Source rows → tokenised samples, a chunk of rows at a time: values in, values out, so that processes can share the work.

Called by `collect`, in this process or in others (`workers`). Stores nothing.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.prepare import split
from steps.prepare.chat.conversations import Conversation, Layout, Skip, to_conversation
from steps.prepare.chat.template import Refused, Rendered
from steps.prepare.read.files import Row
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
    layout: Layout
    system: str
    sequence_length: int
    seed: int
    validation_fraction: float


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that gives no sample."""

    reason: str
    place: str
    needed: int = 0
    """For TOO_LONG: the sequence length that would do."""


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
    """16 bytes per sample."""
    positions: bytes
    """One float64 per sample."""
    answers: tuple[str, ...]
    """The last answers of the first samples, SCORED_ANSWERS of them."""
    texts: tuple[Text, ...]
    """Of the samples that may be held out: at least one, if only for the case that no other is."""
    unusable: tuple[Unusable, ...]


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
        self._tokenizer = tokenizer or ChatTokenizer.load(recipe.model)

    def make(self, rows: Sequence[Row]) -> Made:
        """The samples in the rows' order, and the rows that give none."""
        unusable: list[Unusable] = []
        candidates: list[_Candidate] = []
        for row in rows:
            found = self._render(row)
            (candidates if isinstance(found, _Candidate) else unusable).append(found)  # type: ignore[arg-type]
        encoded = self._tokenizer.encode([candidate.rendered for candidate in candidates])
        fitting: list[tuple[_Candidate, Tokens]] = []
        for candidate, tokens in zip(candidates, encoded, strict=True):
            if tokens.mask.find(1, 0, self._recipe.sequence_length) >= 0:
                fitting.append((candidate, tokens))
            else:
                unusable.append(Unusable(TOO_LONG, candidate.row.place, tokens.mask.find(1) + 1))
        return self._gather(fitting, tuple(unusable))

    def _render(self, row: Row) -> _Candidate | Unusable:
        turns = to_conversation(row.values, self._recipe.layout, system=self._recipe.system)
        if isinstance(turns, Skip):
            return Unusable(turns.reason, row.place)
        try:
            return _Candidate(row, turns, self._tokenizer.render(turns))
        except Refused as error:
            return Unusable(f"a conversation that the model's chat template refuses: {error}", row.place)

    def _gather(self, fitting: Sequence[tuple[_Candidate, Tokens]], unusable: tuple[Unusable, ...]) -> Made:
        most = self._recipe.sequence_length
        masks = [tokens.mask[:most] for _, tokens in fitting]
        keys = [split.content_key(candidate.conversation) for candidate, _ in fitting]
        positions = [self._position(key, candidate.row) for key, (candidate, _) in zip(keys, fitting, strict=True)]
        return Made(
            ids=b"".join(tokens.ids[: ID_BYTES * most] for _, tokens in fitting),
            mask=b"".join(masks),
            lengths=array("i", map(len, masks)).tobytes(),
            targets=array("i", (mask.count(1) for mask in masks)).tobytes(),
            cut=array("i", (max(0, len(tokens.mask) - most) for _, tokens in fitting)).tobytes(),
            keys=b"".join(keys),
            positions=array("d", positions).tobytes(),
            answers=tuple(candidate.conversation[-1].content for candidate, _ in fitting[:SCORED_ANSWERS]),
            texts=tuple(self._texts([candidate for candidate, _ in fitting], positions)),
            unusable=unusable,
        )

    def _position(self, key: bytes, row: Row) -> float:
        return split.position(key, self._recipe.seed, self._recipe.validation_fraction, _side(row))

    def _texts(self, candidates: Sequence[_Candidate], positions: Sequence[float]) -> Iterator[Text]:
        lowest = min(positions, default=0.0)
        for sample, (candidate, position) in enumerate(zip(candidates, positions, strict=True)):
            if position < self._recipe.validation_fraction or position == lowest:
                yield Text(sample, position, json.dumps(self._describe(candidate), ensure_ascii=False))

    def _describe(self, candidate: _Candidate) -> dict[str, Any]:
        prompt = candidate.rendered.prompt
        return {
            "messages": [turn.to_dict() for turn in candidate.conversation],
            "prompt": prompt,
            "prompt_ids": self._tokenizer.encode_prompt(prompt),
            "reference": candidate.conversation[-1].content,
        }


def _side(row: Row) -> split.Side:
    """What a built-in generator says about a row; in people's own data a column `split` means nothing here."""
    given = row.values.get("split") if row.file.startswith("builtin:") else ""
    return "validation" if given == "validation" else "train" if given == "train" else ""
