"""Under which name a weight file holds what the loaded model calls by another: transformers renames while it loads. Pure.

Used by `train` (is every adapted weight in the files?) and by `merge` (which bytes does the adapter change?).
"""

from __future__ import annotations

from collections.abc import Collection

RENAMED = (
    ("model.language_model.", "language_model.model."),  # multimodal wrappers since transformers 4.52
    ("lm_head.", "language_model.lm_head."),
)
"""(the model's beginning, the file's)."""
UNPREFIXED = {"gpt2": "transformer.", "bloom": "transformer."}
"""model_type → what their hub files leave out: they were saved without a head (`h.0.attn…`, `word_embeddings.weight`)."""
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""How the names of output and input embeddings end."""


def stored_name(name: str, stored: Collection[str]) -> str:
    """The file's name of the model's weight `name`: the same, without the base model's prefix, or renamed; empty: it has none."""
    renamed = (old + name.removeprefix(new) for new, old in RENAMED if name.startswith(new))
    return next((found for found in (name, *renamed, name.partition(".")[2]) if found in stored), "")


def find_by_end(endings: tuple[str, ...], stored: Collection[str]) -> str:
    """The first stored name that is one of the endings, or ends so after a dot; empty: none."""
    dotted = tuple(f".{ending}" for ending in endings)
    return next((name for name in stored if name in endings or name.endswith(dotted)), "")
