"""What both models are asked: held-out samples, rows for the loss, and how long an answer may be.

Read by `stage` from a prepared directory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steps.evaluate.loss import Sample
from steps.protocol.prepared import MANIFEST, HeldOut, PreparedRows
from steps.protocol.rundir import read_json

LEAST_TOKENS = 64
"""Room for an answer, however short the references are."""
ROOM = 1.5
"""An answer may be so much longer than the reference at the 95th percentile."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What every model is asked."""

    held_out: Sequence[HeldOut]
    loss_samples: Sequence[Sample]
    reference_tokens: Sequence[int]
    """Of each held-out sample's answer as it stands in its row: with thinking and end, perhaps cut at the sequence length."""
    score: str
    """Its name; where the sources of a mixture have scores of their own, all their names."""
    template: str | None
    """The chat template that the prompts were made with; None: not known, the tokenizer's own."""
    max_new_tokens: int = 0
    scores: Mapping[str, str] = field(default_factory=dict)
    """Of a mixture: source → its score, where it has one of its own."""

    def score_of(self, sample: HeldOut) -> str:
        """The score of this sample's answers."""
        return self.scores.get(sample.source, self.score)

    def part(self, first: int, end: int) -> Questions:
        """The samples from `first` up to `end`, and no loss."""
        return replace(self, held_out=self.held_out[first:end], loss_samples=())


def read_questions(path: Path, *, score: str, first: int, max_rows: int, max_loss_rows: int) -> Questions:
    """Held-out samples of a prepared directory, from the one numbered `first` on.

    Raises:
        StorageError: it is damaged.
    """
    data = PreparedRows.open(path)
    rows = [data.validation.row(index) for index in range(first, min(len(data.validation), first + max_loss_rows))]
    both = [
        sample for number, sample in enumerate(data.held_out()) if 0 <= number - first < max(max_rows, max_loss_rows)
    ]
    held_out = both[:max_rows]
    ids = (data.validation.row(first + number).input_ids.tolist() for number in range(len(held_out)))
    template = read_json(path / MANIFEST).get("chat_template")
    return Questions(
        held_out=tuple(held_out),
        loss_samples=tuple(
            Sample(row.input_ids.tolist(), row.labels.tolist(), sample.source)
            for row, sample in zip(rows, both, strict=False)
        ),
        reference_tokens=tuple(_answer_tokens(row, sample) for row, sample in zip(ids, held_out, strict=True)),
        score=score,
        template=template if isinstance(template, str) and template else None,
    )


def _answer_tokens(row: Sequence[int], sample: HeldOut) -> int:
    asked = len(sample.prompt_ids)
    return len(row) - asked if tuple(row[:asked]) == sample.prompt_ids else 0


def room_for_answers(questions: Questions, tokenizer: Any) -> int:
    """Tokens that an answer may have: the references' 95th percentile and a half more, never less than LEAST_TOKENS."""
    lengths = sorted(
        max(known, len(tokenizer(sample.reference, add_special_tokens=False).input_ids))
        for known, sample in zip(questions.reference_tokens, questions.held_out, strict=True)
    )
    longest = lengths[math.ceil(0.95 * len(lengths)) - 1]
    return max(LEAST_TOKENS, math.ceil(ROOM * longest))
