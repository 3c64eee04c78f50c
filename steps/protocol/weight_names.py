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
MIXTRALS = (
    *((".mlp.", ".block_sparse_moe."), (".router.", ".gate.")),
    *((".gate_proj.", ".w1."), (".down_proj.", ".w2."), (".up_proj.", ".w3.")),
)
"""(what transformers 5 calls parts of Mixtral, Phi-3.5 MoE and MiniMax, what their files do)."""
STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Parameter in which transformers 5 stacks a layer's experts → the matrices of one expert in it, one below the other; in PEFT's
order of wrapping."""
UNPREFIXED = {"gpt2": "transformer.", "bloom": "transformer."}
"""model_type → what their hub files leave out: they were saved without a head (`h.0.attn…`, `word_embeddings.weight`)."""
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""How the names of output and input embeddings end."""


def stored_name(name: str, stored: Collection[str]) -> str:
    """The file's name of the model's weight `name`: the same, without the base model's prefix, or renamed; empty: it has none."""
    if name in stored:
        return name
    renamed = [old + name.removeprefix(new) for new, old in RENAMED if name.startswith(new)]
    return next((found for found in (*renamed, name.partition(".")[2], _as_in_mixtral(name)) if found in stored), "")


def _as_in_mixtral(name: str) -> str:
    for new, old in MIXTRALS:
        name = name.replace(new, old)
    return name


def find_by_end(endings: tuple[str, ...], stored: Collection[str]) -> str:
    """The first stored name that is one of the endings, or ends so after a dot; empty: none."""
    dotted = tuple(f".{ending}" for ending in endings)
    return next((name for name in stored if name in endings or name.endswith(dotted)), "")
