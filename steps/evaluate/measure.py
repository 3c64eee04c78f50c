"""One model on the held-out samples: its loss, its answers, their scores.

Called by `stage`, once for the base model and once for the tuned one, so that only one is in memory at a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from steps.errors import ModelError
from steps.evaluate.attention import quicken_steps
from steps.evaluate.generate import answer_limit, end_tokens, generate
from steps.evaluate.loss import mean_of, sums_by_source
from steps.evaluate.questions import Questions
from steps.evaluate.scoring.reasoning import after_thinking, has_markers, is_part_of_a_marker, opened_by
from steps.evaluate.scoring.scores import score_answer
from steps.machine import has_fast_bf16
from steps.protocol.prepared import HeldOut

Progress = Callable[[str, int, int], None]
"""(what is being done and its unit, as in `loss of the base model, samples`; done; in all, 0 where that is not known)"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and its score, see `scores.Score`."""

    text: str
    """As it was given, thinking included."""
    score: float
    exact: bool
    valid: bool | None
    cut: bool = False
    """It did not end by itself: at the length limit, or in the middle of its thinking."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one model did."""

    loss: float
    answers: tuple[Answer, ...]
    tokens: int
    """Generated, end tokens not counted."""
    generate_s: float
    loss_s: float
    losses: Mapping[str, float] = field(default_factory=dict)
    """Of a mixture: source → its samples' loss."""

    @property
    def score(self) -> float:
        """Mean over the answers, 0..1."""
        return sum(self.scores) / len(self.answers)

    @property
    def scores(self) -> list[float]:
        """Of each answer."""
        return [answer.score for answer in self.answers]

    @property
    def cut(self) -> int:
        """Answers that were cut."""
        return sum(answer.cut for answer in self.answers)

    def first(self, count: int) -> Measured:
        """The same with the first `count` answers only."""
        return replace(self, answers=self.answers[:count])

    def and_more(self, more: Measured) -> Measured:
        """The same with `more`'s answers behind its own; the loss stays."""
        return replace(
            self,
            answers=(*self.answers, *more.answers),
            tokens=self.tokens + more.tokens,
            generate_s=round(self.generate_s + more.generate_s, 3),
        )

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


def measure(
    folder: Path, questions: Questions, *, precision: str, batch_size: int, name: str, progress: Progress
) -> Measured:
    """Load the model, ask it everything, let it go. `name` (base, tuned) is for the progress line."""
    model, tokenizer = load_model(folder, precision=precision)
    started = time.monotonic()
    samples, most = questions.loss_samples, questions.max_new_tokens
    sums: dict[str, tuple[float, int]] = {}
    if samples:
        sums = sums_by_source(
            model, samples, on_samples=lambda done: progress(f"loss of the {name} model, samples", done, len(samples))
        )
    between = time.monotonic()
    prompts = [sample.prompt_ids for sample in questions.held_out]
    found = generate(
        model,
        prompts,
        ends=end_tokens(model, tokenizer, questions.template),
        max_new_tokens=most,
        batch_size=batch_size,
        on_answers=lambda done: progress(f"answers of the {name} model, answers", done, len(prompts)),
        on_token=_Counter(f"answers of the {name} model, tokens", progress),
    )
    ended = time.monotonic()
    cut = [len(tokens) >= answer_limit(model, prompt, most) for prompt, tokens in zip(prompts, found, strict=True)]
    del model
    gc.collect()  # the next model is loaded only when this one's memory is free
    texts = Texts(tokenizer)
    return Measured(
        loss=mean_of(sums.values()),
        losses={source: mean_of([pair]) for source, pair in sums.items() if source},
        answers=tuple(
            _answer(questions.score_of(sample), texts, sample, tokens, is_cut)
            for sample, tokens, is_cut in zip(questions.held_out, found, cut, strict=True)
        ),
        tokens=sum(map(len, found)),
        generate_s=round(ended - between, 3),
        loss_s=round(between - started, 3),
    )


class _Counter:
    """Counts tokens: a batch of answers may take minutes, and all of them may end with its last token."""

    def __init__(self, what: str, progress: Progress) -> None:
        self._what, self._progress, self._tokens = what, progress, 0

    def __call__(self, row: int, token: int) -> None:
        self._tokens += 1
        self._progress(self._what, self._tokens, 0)


@cache
def import_libraries() -> None:
    """torch and transformers. Looking for garbage meanwhile would take a fifth of the time, and all this stays."""
    gc.disable()
    try:
        from transformers import AutoModelForCausalLM  # noqa: F401  # and torch with it
    finally:
        gc.freeze()
        gc.enable()


def load_model(folder: Path, *, precision: str) -> tuple[Any, Any]:
    """(model, tokenizer) from a local folder, on the GPU if there is one. `precision`: bf16, fp32, or auto: the weights' own, but
    fp32 where the device is slow at bf16.

    Raises:
        ModelError: it is damaged, incomplete or of a kind that transformers does not know.
    """
    import_libraries()
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():  # transformers would take the path for a hub id and complain of that
        raise ModelError(f"no model in {folder}: it has no config.json; make it again, or look where it went")
    if precision == "auto" and not has_fast_bf16():
        precision = "fp32"
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(precision, "auto")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load the model in {folder}: {error}") from error
    tokenizer = load_tokenizer(folder)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    quicken_steps(model)
    return model, tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a local folder.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load the tokenizer in {folder}: {error}") from error


class Texts:
    """What people read of a model's tokens: special tokens are left out, but for those that mark thinking."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        self._left_out = sorted((token for token in special if not is_part_of_a_marker(token)), key=len, reverse=True)

    def decode(self, tokens: Sequence[int]) -> str:
        """The tokens' text."""
        whole = str(self._tokenizer.decode(tokens, skip_special_tokens=False))
        if has_markers(whole):
            return self.without_special(whole)
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def without_special(self, text: str) -> str:
        """A text in which special tokens are written out, without them."""
        for token in self._left_out:
            text = text.replace(token, "")
        return text.strip()


def _answer(name: str, texts: Texts, sample: HeldOut, tokens: Sequence[int], is_cut: bool) -> Answer:
    text = opened_by(sample.prompt) + texts.decode(tokens)
    score = score_answer(name, text, texts.without_special(sample.reference))
    is_cut = is_cut or after_thinking(text).is_thinking
    return Answer(text=text, score=score.value, exact=score.exact, valid=score.valid, cut=is_cut)


def side_by_side(questions: Questions, before: Measured, after: Measured) -> Iterator[dict[str, Any]]:
    """What samples.jsonl holds: each prompt, its reference, both answers and their scores."""
    for sample, base, tuned in zip(questions.held_out, before.answers, after.answers, strict=True):
        yield {
            "prompt": _asked_last(sample),
            "reference": sample.reference,
            "base_answer": base.text,
            "tuned_answer": tuned.text,
            "base_score": base.score,
            "tuned_score": tuned.score,
            "base_exact": base.exact,
            "tuned_exact": tuned.exact,
            "base_cut": base.cut,
            "tuned_cut": tuned.cut,
            "messages": list(sample.messages),
            **({"source": sample.source} if sample.source else {}),
        }


def _asked_last(sample: HeldOut) -> str:
    """The turn before the answer, where it is text; else the whole prompt."""
    asked = sample.messages[-2].get("content") if len(sample.messages) > 1 else None
    return asked if isinstance(asked, str) else sample.prompt
