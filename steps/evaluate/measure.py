"""One model on the held-out samples: its loss, its answers, their scores.

Called by `stage`, once for the base model and once for the tuned one, so that only one is in memory at a time.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steps.errors import ModelError
from steps.evaluate.attention import quicken_steps
from steps.evaluate.generate import end_tokens, generate
from steps.evaluate.loss import Sample, mean_loss
from steps.evaluate.scores import score_answer
from steps.machine import has_fast_bf16
from steps.protocol.prepared import HeldOut, PreparedRows

Progress = Callable[[str, int, int], None]
"""(what is being done, samples done, samples in all)"""


@dataclass(frozen=True, slots=True)
class Questions:
    """What every model is asked."""

    held_out: Sequence[HeldOut]
    loss_samples: Sequence[Sample]
    score: str
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and its score, see `scores.Score`."""

    text: str
    score: float
    exact: bool
    valid: bool | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What one model did."""

    loss: float
    answers: tuple[Answer, ...]
    tokens: int
    """Generated, end tokens not counted."""
    generate_s: float
    loss_s: float

    @property
    def score(self) -> float:
        """Mean over the answers, 0..1."""
        return sum(answer.score for answer in self.answers) / len(self.answers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Measured:
        """Read back.

        Raises:
            TypeError, KeyError: not what `to_dict` wrote.
        """
        return cls(**{**raw, "answers": tuple(Answer(**answer) for answer in raw["answers"])})


def read_questions(path: Path, *, score: str, max_rows: int, max_loss_rows: int, max_new_tokens: int) -> Questions:
    """The first held-out samples of a prepared directory.

    Raises:
        StorageError: it is damaged.
    """
    data = PreparedRows.open(path)
    rows = (data.validation.row(index) for index in range(min(len(data.validation), max_loss_rows)))
    return Questions(
        held_out=tuple(itertools.islice(data.held_out(), max_rows)),
        loss_samples=tuple(Sample(row.input_ids.tolist(), row.labels.tolist()) for row in rows),
        score=score,
        max_new_tokens=max_new_tokens,
    )


def measure(
    folder: Path, questions: Questions, *, precision: str, batch_size: int, name: str, progress: Progress
) -> Measured:
    """Load the model, ask it everything, let it go. `name` (base, tuned) is for the progress line."""
    model, tokenizer = load_model(folder, precision=precision)
    started = time.monotonic()
    samples = questions.loss_samples
    loss = mean_loss(model, samples, on_samples=lambda done: progress(f"loss of the {name} model", done, len(samples)))
    between = time.monotonic()
    found = generate(
        model,
        [sample.prompt_ids for sample in questions.held_out],
        ends=end_tokens(model, tokenizer),
        max_new_tokens=questions.max_new_tokens,
        batch_size=batch_size,
        on_answers=lambda done: progress(f"answers of the {name} model", done, len(questions.held_out)),
    )
    ended = time.monotonic()
    del model
    gc.collect()  # the next model is loaded only when this one's memory is free
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in found]
    return Measured(
        loss=loss,
        answers=tuple(
            _scored(questions.score, text, sample.reference)
            for text, sample in zip(texts, questions.held_out, strict=True)
        ),
        tokens=sum(map(len, found)),
        generate_s=round(ended - between, 3),
        loss_s=round(between - started, 3),
    )


def load_model(folder: Path, *, precision: str) -> tuple[Any, Any]:
    """(model, tokenizer) from a local folder, on the GPU if there is one. `precision`: bf16, fp32, or auto: the weights' own, but
    fp32 where the device is slow at bf16.

    Raises:
        ModelError: it is damaged, incomplete or of a kind that transformers does not know.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():  # transformers would take the path for a hub id and complain of that
        raise ModelError(f"no model in {folder}: it has no config.json; make it again, or look where it went")
    if precision == "auto" and not has_fast_bf16():
        precision = "fp32"
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(precision, "auto")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load the model in {folder}: {error}") from error
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    quicken_steps(model)
    return model, tokenizer


def _scored(name: str, text: str, reference: str) -> Answer:
    score = score_answer(name, text, reference)
    return Answer(text=text, score=score.value, exact=score.exact, valid=score.valid)
