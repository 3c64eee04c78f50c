"""Made-up rows with the lengths of Alpaca's, for `prepare` and `train`.

Lengths in words are drawn from the quantiles of real Alpaca rows, words by Zipf's law from the tokenizer's own vocabulary,
which stands about in the order of frequency. So tokens per row, packing and rare words are as in real rows; the sense is not.
Made by this project: no row of anybody's data set is in it. `--data FILE` takes real rows instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

SHARES = [0, 1, 2, *range(5, 100, 5), 98, 99, 100]
"""Percent of the rows that have at most so many words as stand below."""
INSTRUCTION = [4, 4, 5, 5, 6, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10, 11, 11, 12, 13, 13, 14, 17, 21, 24, 73]
INPUT = [1, 1, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7, 7, 8, 10, 11, 11, 13, 16, 21, 33, 60, 74, 121]
OUTPUT = [1, 1, 3, 6, 8, 10, 13, 19, 24, 33, 46, 60, 81, 98, 118, 137, 170, 199, 224, 246, 279, 305, 350, 384, 429]
WITH_INPUT = 0.41
"""Share of the rows that have an input."""
ENDS = {"": 0.86, ",": 0.05, ".": 0.04, ".\n": 0.02, " 42": 0.015, "'s": 0.015}
"""What stands after a word, and how often."""
ZIPF = 1.18
"""The frequency of a word falls with its rank to this power."""
RARE, ENDINGS = 0.06, 8
"""Share of the words that are put together from two, which makes them longer than one token; how many there are to end them.

With both, the number of different words grows about as in real rows, of which 500 hold 9,750 in the tokenizer's sense of the
word and 999 hold 14,187; these hold 9,200 and 14,400, and 48,000 in 10,000 rows.
"""
BATCH, WORDS = 1000, 100_000
"""Rows and words drawn at once."""


def write_rows(path: Path, count: int, *, model: Path, data: str = "") -> Path:
    """`count` rows as JSON lines, all different; of `data`, a JSON array of Alpaca rows, again and again behind a counter."""
    rows = _repeat(json.loads(Path(data).read_text()), count) if data else make_rows(count, model)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def _repeat(rows: list[dict[str, str]], count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        row = rows[number % len(rows)]
        yield {**row, "instruction": f"{number} {row['instruction']}"}


def make_rows(count: int, model: Path, seed: int = 0) -> Iterator[dict[str, str]]:
    """Rows with instruction, input and output; the same for the same seed."""
    rng = np.random.default_rng(seed)
    said = _texts(vocabulary(model), rng)
    parts = {"instruction": (INSTRUCTION, 1.0), "input": (INPUT, WITH_INPUT), "output": (OUTPUT, 1.0)}
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        lengths = {
            part: np.interp(rng.random(size), np.array(SHARES) / 100, upto) * (rng.random(size) < share)
            for part, (upto, share) in parts.items()
        }
        for row in zip(*(many.astype(int).tolist() for many in lengths.values()), strict=True):
            yield {part: " ".join(islice(said, many)) for part, many in zip(parts, row, strict=True)}


def _texts(words: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Words without end, each with what stands after it."""
    upto = np.cumsum(np.arange(1, len(words) + 1) ** -ZIPF)
    ends, shares = list(ENDS), list(ENDS.values())
    while True:
        first, second = np.searchsorted(upto, rng.random((2, WORDS)) * upto[-1]).tolist()
        after, rare = rng.choice(len(ends), WORDS, p=shares).tolist(), (rng.random(WORDS) < RARE).tolist()
        for one, other, end, is_rare in zip(first, second, after, rare, strict=True):
            yield words[one] + (words[other % ENDINGS] if is_rare else "") + ends[end]


def vocabulary(model: Path) -> list[str]:
    """The words that the tokenizer knows as one token, in its own order."""
    known: dict[str, int] = json.loads((model / "tokenizer.json").read_bytes())["model"]["vocab"]
    return [token[1:] for token in sorted(known, key=known.__getitem__) if re.fullmatch(r"Ġ[A-Za-z]{2,}", token)]
