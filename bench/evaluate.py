"""Evaluation against transformers one at a time: generated tokens/s against `pipeline(...)`, loss against plain forward passes.

    python -m bench evaluate [--rounds 3] [--prompts 32] [--their-prompts 8]

SmolLM2-135M in bf16 on the held-out orders that the demo is scored on. The pipeline answers only the first of the prompts, since
it takes minutes for all; both speeds count end tokens. Medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench._report import report
from steps.base.stage import fetch
from steps.evaluate.generate import end_tokens, generate
from steps.evaluate.loss import IGNORED, Sample, mean_loss
from steps.evaluate.measure import load_model
from steps.prepare.read.orders import generate_orders
from steps.settings.catalog import find_model
from steps.settings.config import Settings

MAX_NEW_TOKENS = 96
"""As config/datasets/orders.yaml has it."""
BATCH_SIZE = Settings().evaluation.batch_size


def main(argv: list[str]) -> int:
    """Measure in turn, print medians."""
    parser = argparse.ArgumentParser(prog="python -m bench evaluate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--their-prompts", type=int, default=8)
    asked = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cache = Path(Settings().storage.cache).expanduser()
    base = fetch(find_model("smollm2-135m"), cache=cache, min_free_gib=1)
    model, tokenizer = load_model(Path(base.path), precision="bf16")
    samples = held_out(tokenizer, asked.prompts)
    texts = [prompt for prompt, _ in samples]
    losses = [loss_sample(tokenizer, *sample) for sample in samples]
    compare(
        "evaluation: generated tokens/s against pipeline(), one prompt at a time",
        ours=lambda: our_tokens(model, tokenizer, texts),
        theirs=lambda: their_tokens(model, tokenizer, texts[: asked.their_prompts]),
        unit="tokens/s",
        rounds=asked.rounds,
        goal="ratio >= 3",
    )
    compare(
        "evaluation: loss, samples/s against one forward pass per sample",
        ours=lambda: count(len(losses), mean_loss(model, losses)),
        theirs=lambda: count(len(losses), their_loss(model, losses)),
        unit="samples/s",
        rounds=asked.rounds,
    )
    return 0


def compare(
    what: str, *, ours: Callable[[], int], theirs: Callable[[], int], unit: str, rounds: int, goal: str = ""
) -> None:
    """Both in turn; each call returns how much it did."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, found in zip((ours, theirs), speeds, strict=True):
            begun_s = time.perf_counter()
            done = work()
            found.append(done / (time.perf_counter() - begun_s))
    mine, other = map(statistics.median, speeds)
    report(what, mine, other, unit=unit, goal=goal)


def held_out(tokenizer: Any, number: int) -> list[tuple[str, str]]:
    """(prompt with the chat template, answer) of the first held-out orders."""
    rows = [row for row in generate_orders() if row["split"] == "validation"][:number]
    return [
        (
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
            ),
            row["completion"],
        )
        for row in rows
    ]


def loss_sample(tokenizer: Any, prompt: str, answer: str) -> Sample:
    """A loss on the answer and its end."""
    asked, said = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, answer + tokenizer.eos_token)
    )
    return Sample(asked + said, [IGNORED] * len(asked) + said)


def our_tokens(model: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """Tokens generated, those that end an answer included."""
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    ends = end_tokens(model, tokenizer)
    answers = generate(model, prompts, ends=ends, max_new_tokens=MAX_NEW_TOKENS, batch_size=BATCH_SIZE)
    return sum(min(len(answer) + 1, MAX_NEW_TOKENS) for answer in answers)


def their_tokens(model: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """The same, by transformers' pipeline."""
    from transformers import pipeline

    talk = pipeline("text-generation", model=model, tokenizer=tokenizer)
    found = 0
    for text in texts:
        asked = len(tokenizer(text, add_special_tokens=False).input_ids)
        (said,) = talk(
            text, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, return_tensors=True, add_special_tokens=False
        )
        found += len(said["generated_token_ids"]) - asked
    return found


def their_loss(model: Any, samples: Sequence[Sample]) -> float:
    """transformers' own loss, sample by sample."""
    import torch

    with torch.inference_mode():
        losses = [
            float(
                model(
                    input_ids=torch.tensor([sample.input_ids]),
                    labels=torch.tensor([sample.labels]),
                    use_cache=False,
                ).loss
            )
            for sample in samples
        ]
    return statistics.fmean(losses)


def count(done: int, _: object) -> int:
    """The amount of work, its result dropped."""
    return done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
