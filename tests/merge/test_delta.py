"""What an adapter changes, as values: by the names and shapes of its tensors alone."""

from __future__ import annotations

from typing import Any

import pytest

from steps.errors import CheckpointError
from steps.merge.delta import PREFIX, Change, LowRank, Shape, changes_of, check_fits

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
LAYER, HEAD, EMBEDDING = "model.layers.0.mlp.up_proj", "lm_head", "model.embed_tokens"


def pair(module: str, width: int = 8, height: int = 6, *, rank: int = 2, kind: str = "") -> dict[str, Shape]:
    """The two matrices of one module, as PEFT names them."""
    end = "" if kind else ".weight"
    names = (f"{PREFIX}{module}.lora_{kind}{part}{end}" for part in ("A", "B"))
    return dict(zip(names, ((rank, width), (height, rank)), strict=True))


def low_rank(module: str, *, scale: float = 2.0, kind: str = "", **more: Any) -> LowRank:
    """What `pair` adds."""
    down, up = pair(module, kind=kind)
    return LowRank(down, up, scale, **more)


SAVED = f"{PREFIX}{HEAD}.modules_to_save.weight"
BIAS = f"{PREFIX}{LAYER}.base_layer.bias"
LENGTHS = f"{PREFIX}{LAYER}.lora_magnitude_vector"
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Shape], dict[str, Change]]] = {
    "a linear layer": ({}, pair(LAYER), {f"{LAYER}.weight": Change(low_rank(LAYER))}),
    "rsLoRA": ({"use_rslora": True}, pair(LAYER), {f"{LAYER}.weight": Change(low_rank(LAYER, scale=4 / 2**0.5))}),
    "DoRA": (
        {"use_dora": True},
        {**pair(LAYER), LENGTHS: (6,)},
        {f"{LAYER}.weight": Change(low_rank(LAYER, magnitude=LENGTHS))},
    ),
    "a rank and an alpha of its own": (
        {"r": 64, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"down_proj": 1, "mlp.up_proj": 6}},
        pair(LAYER),
        {f"{LAYER}.weight": Change(low_rank(LAYER, scale=3.0))},
    ),
    "an embedding": (
        {},
        pair(EMBEDDING, kind="embedding_"),
        {f"{EMBEDDING}.weight": Change(low_rank(EMBEDDING, kind="embedding_", transposed=True))},
    ),
    "a whole module that was trained": ({}, {SAVED: (9, 8)}, {f"{HEAD}.weight": Change(replacement=SAVED)}),
    "a trained bias": (
        {},
        {**pair(LAYER), BIAS: (6,)},
        {f"{LAYER}.bias": Change(replacement=BIAS), f"{LAYER}.weight": Change(low_rank(LAYER))},
    ),
}


@pytest.mark.parametrize(("config", "shapes", "expected"), CHANGES.values(), ids=CHANGES)
def test_each_weight_s_change_follows_from_names_and_config(
    config: dict[str, Any], shapes: dict[str, Shape], expected: dict[str, Change]
) -> None:
    assert changes_of({**LORA, **config}, shapes, model_type="llama") == expected


def test_a_gpt2_stores_its_weights_the_other_way_round() -> None:
    found = changes_of(LORA, pair(LAYER), model_type="gpt2")
    assert found == {f"{LAYER}.weight": Change(low_rank(LAYER, transposed=True))}


def test_dora_on_an_embedding_is_refused_by_its_name() -> None:
    shapes = {**pair(EMBEDDING, kind="embedding_"), f"{PREFIX}{EMBEDDING}.lora_magnitude_vector": (6,)}
    with pytest.raises(CheckpointError, match=rf"DoRA adapter on an embedding \({EMBEDDING}\)"):
        changes_of({**LORA, "use_dora": True}, shapes, model_type="llama")


def test_a_replacement_and_a_sum_are_both_held_against_the_base() -> None:
    shapes = {**pair(LAYER), SAVED: (9, 8)}
    changes = changes_of(LORA, shapes, model_type="llama")
    check_fits(changes, shapes, {f"{LAYER}.weight": (6, 8), f"{HEAD}.weight": (9, 8)})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight of shape \[9, 8\], the base's has \[10, 8\]"):
        check_fits(changes, shapes, {f"{LAYER}.weight": (6, 8), f"{HEAD}.weight": (10, 8)})
