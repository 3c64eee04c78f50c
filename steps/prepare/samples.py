"""Source rows → tokenised samples, a chunk of rows at a time: values in, values out, so that processes can share the work.

Called by `collect`, in this process or in others (`workers`). Stores nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steps.prepare import split
from steps.prepare.conversations import Conversation, Layout, Skip, to_conversation
from steps.prepare.files import Row
from steps.prepare.template import Refused, Rendered
from steps.prepare.tokens import ChatTokenizer, Tokens

TOO_LONG = "no token of an answer within the sequence length"


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
class Sample:
    """One conversation in tokens, and where it falls in the split."""

    ids: bytes
    """int32."""
    mask: bytes
    """uint8; 1 where there is a loss."""
    cut: int
    """Tokens cut off at the end."""
    key: bytes
    position: float
    answer: str
    """The last one."""
    described: dict[str, Any] | None
    """Text for evaluation, if the sample may be held out."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that gives no sample."""

    reason: str
    place: str
    needed: int = 0
    """For TOO_LONG: the sequence length that would do."""


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

    def make(self, rows: Sequence[Row]) -> list[Sample | Unusable]:
        """One outcome for each row, in order of usability: first what was skipped, then the samples in the rows' order.

        At least one sample has its text with it: if none falls below the validation fraction, that of the lowest position.
        """
        outcomes: list[Sample | Unusable] = []
        candidates: list[_Candidate] = []
        for row in rows:
            found = self._render(row)
            (candidates if isinstance(found, _Candidate) else outcomes).append(found)  # type: ignore[arg-type]
        encoded = self._tokenizer.encode([candidate.rendered for candidate in candidates])
        fitting: list[tuple[_Candidate, Tokens]] = []
        for candidate, tokens in zip(candidates, encoded, strict=True):
            if tokens.mask[: self._recipe.sequence_length].any():
                fitting.append((candidate, tokens))
            else:
                outcomes.append(Unusable(TOO_LONG, candidate.row.place, int(tokens.mask.argmax()) + 1))
        return outcomes + self._place(fitting)

    def _render(self, row: Row) -> _Candidate | Unusable:
        turns = to_conversation(row.values, self._recipe.layout, system=self._recipe.system)
        if isinstance(turns, Skip):
            return Unusable(turns.reason, row.place)
        try:
            return _Candidate(row, turns, self._tokenizer.render(turns))
        except Refused as error:
            return Unusable(f"a conversation that the model's chat template refuses: {error}", row.place)

    def _place(self, fitting: Sequence[tuple[_Candidate, Tokens]]) -> list[Sample | Unusable]:
        recipe = self._recipe
        keys = [split.content_key(candidate.conversation) for candidate, _ in fitting]
        positions = [
            split.position(key, recipe.seed, recipe.validation_fraction, _side(candidate.row))
            for key, (candidate, _) in zip(keys, fitting, strict=True)
        ]
        described_below = max(recipe.validation_fraction, np.nextafter(min(positions, default=0.0), 1.0))
        return [
            Sample(
                ids=tokens.ids[: recipe.sequence_length].tobytes(),
                mask=tokens.mask[: recipe.sequence_length].tobytes(),
                cut=max(0, len(tokens.ids) - recipe.sequence_length),
                key=key,
                position=position,
                answer=candidate.conversation[-1].content,
                described=self._describe(candidate) if position < described_below else None,
            )
            for (candidate, tokens), key, position in zip(fitting, keys, positions, strict=True)
        ]

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
