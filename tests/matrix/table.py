"""docs/architectures.md, written from what is measured:  python -m tests.matrix.table"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from steps.errors import ConfigError
from tests.matrix import generation
from tests.matrix.architectures import CONFIGS, write
from tests.matrix.measure import CLOSE, Outcome, measure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
HEAD = """# Architectures

What works for which architecture. Measured by `tests/matrix` on tiny models with random weights and the code that trains and
merges (transformers 5.24, peft 0.21, CPU, fp32); written by `python -m tests.matrix.table`, and the tests fail when a row is not
what they measure. Architectures that are not here are looked at in `start` in the same way: their packing is tried on a tiny
model of their config.json, their modules and weight files are compared, and what cannot be trained or merged is refused by name.

- **attention**: `by_sample` is this project's (each sample by itself), `sdpa` and `eager` are transformers' own choice.
- **packing**: "works" means that a sample's loss is the same alone and in a row with others. Elsewhere packing is off unless
  asked for, and `--packing on` is refused.
- **loss**: equal to plain transformers + PEFT on the same samples, and for a padded batch to the sum over its samples.
- **merge**: weights equal to PEFT's `merge_and_unload`.
- **reload**: the merged folder, loaded by plain transformers, has the loss that base and adapter have together.
- **generation**: the answers of evaluation's batches are those of transformers' `generate` on each prompt alone, and how they are
  made: by this project's own steps (what all prompts begin with is read once, ended rows are dropped), or by `generate` itself.

| architecture | attention | packing | LoRA on all-linear | loss | merge | reload | generation |
|---|---|---|---|---|---|---|---|
"""
TAIL = """
Also measured: weight files of GPT-2 and BLOOM named as on the hub (`h.0…`, no prefix); LoRA on tied embeddings and heads of
GPT-2, BLOOM, Falcon, Qwen2, Gemma 2, OPT and MPT, where the merge gives the head weights of its own; Gemma 3 with a vision tower,
which gets no adapter.

Refused in `start`, by name: quantised bases (bitsandbytes, GPTQ, FP8 and others: an adapter cannot be added to their weights);
models that transformers has no causal language model for, or that need code of their own; encoders, whose tokens see those to
come; DoRA on embeddings and on GPT-2's layers (they store (in, out)); LoRA on the tied embedding of a multimodal model; targets
that are no linear layers; weight files without the weights of the adapted modules; tokenizers with more tokens than the
embedding has rows; sequences longer than the model's positions.
"""


def line(name: str, found: Outcome | str, answers: str) -> str:
    """One row; `found` is why `start` refuses, where it does; `answers` is what `generation.look_at` says."""
    if isinstance(found, str):
        reason = found.removeprefix("--lora-targets: all-linear: ").split(". ")[0].replace("|", "\\|")
        return f"| {name} | | | refused: {reason} | | | | {answers} |"
    packing = "works" if found.packed_loss is not None and found.packed_loss < CLOSE else _why(found)
    loss = "equal" if max(found.padded_loss, found.plain_loss) < CLOSE else "differs"
    merge = "equal" if found.merge < 1e-6 else "differs"
    reload = "equal" if found.reload < CLOSE else "differs"
    return f"| {name} | {found.attention} | {packing} | {found.adapted} modules | {loss} | {merge} | {reload} | {answers} |"


def _why(found: Outcome) -> str:
    if not found.packing:
        return "wrong"
    return (
        "off: samples see each other"
        if "see each other" in found.packing
        else f"off: {found.packing.partition(' (')[0]}"
    )


def look_at(name: str, folder: Path) -> Outcome | str:
    """What `line` shows."""
    write(name, folder / "base")
    try:
        return measure(folder / "base")
    except ConfigError as error:
        return str(error)


def main() -> int:
    lines = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            found = look_at(name, Path(folder))
            lines.append(line(name, found, generation.look_at(Path(folder, "base"))) + "\n")
    PAGE.write_text(HEAD + "".join(lines) + TAIL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
