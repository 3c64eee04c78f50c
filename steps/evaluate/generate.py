"""Greedy answers to many prompts, in batches of similar length: prompts padded on the left, rows that ended dropped.

Called by `stage` and `talk`. Takes token ids and gives token ids; knows nothing of text, data or scores. One prompt at a time
reads all weights for every single token; a batch reads them once for all its rows, which is where the speed comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from steps.evaluate.batch import pad, read_prefix, shared_prefix

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")
"""Tokens that end an assistant's turn in common chat templates, whatever the model calls its end of text."""


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids after which an answer is over."""
    given = [tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id]
    ids = {token for value in given for token in (value if isinstance(value, list) else [value]) if token is not None}
    vocabulary = tokenizer.get_vocab()
    return frozenset(ids | {vocabulary[end] for end in TURN_ENDS if end in vocabulary})


def context_length(model: Any) -> int:
    """Tokens that prompt and answer may have together; practically without end where the model's config sets no limit."""
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    max_new_tokens: int,
    batch_size: int,
    on_answers: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The answers' tokens, in the prompts' order, without the token that ended them.

    `on_answers` hears how many prompts are done. A prompt that fills the model's context gets an empty answer.
    """
    room = context_length(model)
    longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    fitting = [index for index in longest_first if len(prompts[index]) < room]
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(fitting), batch_size):
        batch = fitting[start : start + batch_size]
        found = generate_batch(model, [prompts[index] for index in batch], ends=ends, max_new_tokens=max_new_tokens)
        for index, answer in zip(batch, found, strict=True):
            answers[index] = answer
        if on_answers:
            on_answers(len(prompts) - len(fitting) + start + len(batch))
    return answers


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    max_new_tokens: int,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """One batch of prompts, each shorter than the model's context. `on_token` hears (row, token) as soon as there is one.

    The state of a step is (tokens to read, mask over everything read so far, position of the last token, cache), one row per
    answer that goes on.
    """
    import torch

    answers: list[list[int]] = [[] for _ in prompts]
    limits = [min(max_new_tokens, context_length(model) - len(prompt)) for prompt in prompts]
    going = list(range(len(prompts)))
    with torch.inference_mode():
        shared = shared_prefix(prompts, at_most=min(map(len, prompts)) - 1)
        cache = read_prefix(model, prompts[0][:shared], len(prompts))
        tokens, own = pad([prompt[shared:] for prompt in prompts], side="left", device=model.device)
        mask = torch.cat([own.new_ones(len(prompts), shared), own], dim=1)
        positions = (own.cumsum(-1) - 1).clamp(min=0) + shared
        while going:
            output = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = output.logits[:, -1].argmax(-1)
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
                rows = torch.tensor(kept, dtype=torch.long, device=model.device)
                cache.batch_select_indices(rows)
                chosen, mask, positions = chosen[rows], mask[rows], positions[rows]
                going = [going[place] for place in kept]
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)
    return answers
