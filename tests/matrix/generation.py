"""The table's column on generation: whether batches answer as transformers' `generate` does to each prompt alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps.evaluate.attention import quicken_steps
from steps.evaluate.generate import generate
from steps.evaluate.ways import Way, greedy, way_of
from tests.matrix.architectures import VOCABULARY

MOST = 10
"""Tokens of an answer."""
WORDS: dict[Way, str] = {
    "quick": "equal, own steps",
    "padded": "equal, `generate` on padded batches",
    "alike": "equal, `generate` on prompts of one length",
}


def prompts(*, shared: bool) -> list[list[int]]:
    """Of several lengths, one of them a single token; `shared`: with a beginning longer than the matrix' windows."""
    lengths = (14, 9, 1, 14, 22, 3)
    head = [(7 * place) % (VOCABULARY - 3) + 3 for place in range(12)] if shared else []
    return [
        head + [(11 * row + 5 * place) % (VOCABULARY - 3) + 3 for place in range(length)]
        for row, length in enumerate(lengths)
    ]


def alone(model: Any, prompt: list[int], ends: frozenset[int]) -> list[int]:
    """What transformers' `generate` says to one prompt, up to its end."""
    import torch

    asked = torch.tensor([prompt])
    with torch.inference_mode():
        said = model.generate(asked, attention_mask=torch.ones_like(asked), **greedy(MOST, ends))[
            0, len(prompt) :
        ].tolist()
    return said[: next((place for place, token in enumerate(said) if token in ends), len(said))]


def raise_inner_weights(model: Any) -> None:
    """Above those of the embedding, which is scaled and tied: else each token's next one is the token itself."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" not in name:
            weight.data *= 4


def look_at(folder: Path) -> str:
    """The model in this folder: how its answers are made, and whether they are equal.

    Raises:
        ValueError: it says the same to every prompt, so that nothing would be compared.
    """
    from transformers import AutoModelForCausalLM

    theirs, ours = (AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval() for _ in range(2))
    if theirs.config.model_type == "xglm":
        for model in (theirs, ours):
            raise_inner_weights(model)
    quicken_steps(ours)
    for shared in (True, False):
        asked = prompts(shared=shared)
        free = [alone(theirs, prompt, frozenset()) for prompt in asked]
        if len({tuple(answer) for answer in free}) < 4:
            raise ValueError(f"the model in {folder} says the same to everything")
        ends = frozenset({free[0][3], free[1][6]})  # some rows end before the others
        expected = [alone(theirs, prompt, ends) for prompt in asked]
        if generate(ours, asked, ends=ends, max_new_tokens=MOST, batch_size=4) != expected:
            return "differs"
    return WORDS[way_of(ours, asked)]
