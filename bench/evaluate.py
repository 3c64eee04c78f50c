"""Evaluation against transformers: generated tokens/s against `generate` on left-padded batches, loss against forward passes.

    python -m bench evaluate [--rounds 3] [--prompts 32]

SmolLM2-135M, in the precision that evaluation chooses here, on the held-out orders that the demo is scored on: the same prompts
in batches of the same size for both. Both speeds count end tokens; transformers has its own attention. Medians. Processor time
per token beside the speed: other work on the machine changes it less.
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
    asked = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    cache = Path(Settings().storage.cache).expanduser()
    base = fetch(find_model("smollm2-135m"), cache=cache, min_free_gib=1)
    model, tokenizer = load_model(Path(base.path), precision="auto")
    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=model.dtype, local_files_only=True).eval()
    samples = held_out(tokenizer, asked.prompts)
    texts = [prompt for prompt, _ in samples]
    losses = [loss_sample(tokenizer, *sample) for sample in samples]
    compare(
        "evaluation: generated tokens/s against generate on a left-padded batch",
        ours=lambda: our_tokens(model, tokenizer, texts),
        theirs=lambda: their_tokens(plain.to(model.device), tokenizer, texts),
        unit="tokens/s",
        rounds=asked.rounds,
        goal="ratio >= 1",
    )
    compare(
        "evaluation: loss, samples/s against one forward pass per sample",
        ours=lambda: count(len(losses), mean_loss(model, losses)),
        theirs=lambda: count(len(losses), their_loss(plain.to(model.device), losses)),
        unit="samples/s",
        rounds=asked.rounds,
    )
    return 0


def compare(
    what: str, *, ours: Callable[[], int], theirs: Callable[[], int], unit: str, rounds: int, goal: str = ""
) -> None:
    """Both in turn; each call returns how much it did."""
    speeds: tuple[list[float], list[float]] = ([], [])
    costs: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, found, cost in zip((ours, theirs), speeds, costs, strict=True):
            begun_s, used_s = time.perf_counter(), time.process_time()
            done = work()
            found.append(done / (time.perf_counter() - begun_s))
            cost.append(1000 * (time.process_time() - used_s) / done)
    report(what, *map(statistics.median, speeds), unit=unit, goal=goal)
    each = unit.partition("s/")[0]
    report(
        f"{what}: processor time", *map(statistics.median, costs), unit=f"ms/{each}", goal="ratio <= 1" if goal else ""
    )


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
    """The same, by transformers' `generate` on batches padded on the left, with their own attention."""
    found = 0
    for start in range(0, len(texts), BATCH_SIZE):
        batch = tokenizer(
            list(texts[start : start + BATCH_SIZE]),
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(model.device)
        said = model.generate(
            **batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        for row in said[:, batch["input_ids"].shape[1] :].tolist():
            found += next((place + 1 for place, token in enumerate(row) if token == tokenizer.eos_token_id), len(row))
    return found


def their_loss(model: Any, samples: Sequence[Sample]) -> float:
    """transformers' own loss, sample by sample."""
    import torch

    with torch.inference_mode():
        losses = [
            float(
                model(
                    input_ids=torch.tensor([sample.input_ids], device=model.device),
                    labels=torch.tensor([sample.labels], device=model.device),
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
