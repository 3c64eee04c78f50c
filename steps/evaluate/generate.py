"""Greedy answers to many prompts, in batches of similar length.

Called by `stage` and `chat`. Takes token ids and gives token ids; knows nothing of text, data or scores. One prompt at a time
reads all weights for every single token; a batch reads them once for all its rows, which is where the speed comes from. The
answers are those of transformers' `generate` on each prompt alone: `ways` decides how they are made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steps.evaluate import quick
from steps.evaluate.batch import pad
from steps.evaluate.ways import greedy, way_of
from steps.protocol.turn_end import end_of_turn

if TYPE_CHECKING:
    from torch import Tensor

OnToken = Callable[[int, int], None]
"""(row, token)"""


def end_tokens(model: Any, tokenizer: Any, template: str | None = None) -> frozenset[int]:
    """Ids after which an answer is over: of the tokenizer, the configs and the chat template (`template`, or its own)."""
    ids = {
        token
        for value in (tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id)
        for token in (value if isinstance(value, list) else [value])
        if token is not None
    }
    return frozenset(ids | {*end_of_turn(tokenizer, template)})


def context_length(model: Any) -> int:
    """Tokens that prompt and answer may have together; practically without end where the model's config sets no limit."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or sys.maxsize


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    max_new_tokens: int,
    batch_size: int,
    on_answers: Callable[[int], None] | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """The answers' tokens, in the prompts' order, without the token that ended them.

    `on_answers` hears how many prompts are done, `on_token` each (row in its batch, token). A prompt that fills the model's
    context gets an empty answer.
    """
    room = context_length(model)
    longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    fitting = [index for index in longest_first if len(prompts[index]) < room]
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(fitting), batch_size):
        batch = fitting[start : start + batch_size]
        found = generate_batch(
            model,
            [prompts[index] for index in batch],
            ends=ends,
            max_new_tokens=max_new_tokens,
            on_token=on_token,
        )
        for index, answer in zip(batch, found, strict=True):
            answers[index] = answer
        if on_answers:
            on_answers(len(prompts) - len(fitting) + start + len(batch))
    return answers


def answer_limit(model: Any, prompt: Sequence[int], max_new_tokens: int) -> int:
    """Tokens that the answer to this prompt may have. An answer that has as many was cut: it did not end by itself."""
    return max(0, min(max_new_tokens, context_length(model) - len(prompt)))


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    max_new_tokens: int,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """One batch of prompts, each shorter than the model's context. `on_token` hears (row, token) as soon as there is one."""
    import torch

    limits = [answer_limit(model, prompt, max_new_tokens) for prompt in prompts]
    way = way_of(model, prompts)
    with torch.inference_mode():
        if way == "quick":
            return _quickly(model, prompts, limits, ends, on_token)
        answers: list[list[int]] = [[] for _ in prompts]
        for rows, limit in _groups(prompts, limits, alike=way == "alike"):
            found = _by_transformers(model, [prompts[row] for row in rows], limit, ends, _heard(rows, ends, on_token))
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
    return answers


def _quickly(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    ends: frozenset[int],
    on_token: OnToken | None,
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    state = quick.begin(model, prompts)
    while going:
        chosen = quick.next_logits(model, state).argmax(-1)
        kept = []
        for place, (row, token) in enumerate(zip(going, chosen.tolist(), strict=True)):
            if token in ends:
                continue
            answers[row].append(token)
            if len(answers[row]) < limits[row]:
                kept.append(place)
            if on_token:
                on_token(row, token)
        if len(kept) < len(going):
            order = state.keep(kept)
            chosen = chosen[order]
            going = [going[place] for place in order]
        state.append(chosen)
    return answers


def _groups(prompts: Sequence[Sequence[int]], limits: Sequence[int], *, alike: bool) -> Iterator[tuple[list[int], int]]:
    """(rows, limit) of what `generate` takes at once: one limit, since a row that has ended goes on counting positions; and
    where padding is not proven, one length."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        groups.setdefault((limit, len(prompt) if alike else 0), []).append(row)
    for (limit, _), rows in groups.items():
        yield rows, limit


def _by_transformers(
    model: Any, prompts: Sequence[Sequence[int]], limit: int, ends: frozenset[int], streamer: _Listener | None
) -> list[list[int]]:
    tokens, mask = pad(prompts, side="left", device=model.device)
    found = model.generate(tokens, attention_mask=mask, **greedy(limit, ends), streamer=streamer)
    return [_until_end(row, ends) for row in found[:, tokens.shape[1] :].tolist()]


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def _heard(rows: Sequence[int], ends: frozenset[int], on_token: OnToken | None) -> _Listener | None:
    return _Listener(rows, ends, on_token) if on_token else None


class _Listener:
    """What `generate` takes as its streamer: hands on each row's tokens until that row's end."""

    def __init__(self, rows: Sequence[int], ends: frozenset[int], on_token: OnToken) -> None:
        self._going = dict(enumerate(rows))
        self._ends = ends
        self._on_token = on_token
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """First the prompts, then one token per row at a time."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for place, token in enumerate(value.tolist()):
            if token in self._ends:
                self._going.pop(place, None)
            if place in self._going:
                self._on_token(self._going[place], token)

    def end(self) -> None:
        """Nothing is left to say."""
