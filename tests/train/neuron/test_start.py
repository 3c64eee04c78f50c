"""The neuron backend's adapter begins with the weights that PEFT, and so the torch backend, draws for the same seed."""

from __future__ import annotations

from typing import Any

import pytest

from steps.settings.checks import LLAMA_LINEAR
from steps.train.neuron.consolidate import AdapterShape, consolidate
from steps.train.neuron.planning.refusals import MODEL_TYPES
from steps.train.neuron.start import draw_start, in_ranks_order, module_of

SHAPE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "targets", [LLAMA_LINEAR, ("q_proj", "o_proj", "embed_tokens")], ids=["all", "with embeddings"]
)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_peft_draws_the_same_start(model_type: str, targets: tuple[str, ...]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SHAPE))
    torch.manual_seed(11)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM"))
    expected = {
        module_of(name): parameter
        for name, parameter in model.named_parameters()
        if "lora_A" in name or "lora_embedding_B" in name
    }
    before = torch.get_rng_state()
    found = draw_start(SHAPE, targets, rank=4, seed=11)
    assert list(found) == list(expected)
    assert all(found[name].equal(expected[name]) for name in expected)
    assert torch.get_rng_state().equal(before), "the draw is nobody else's"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("base_model.model.model.layers.3.mlp.gate_up_proj.lora_A.default.weight", "model.layers.3.mlp.gate_proj"),
        ("base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.default.weight", "model.layers.0.self_attn.q_proj"),
        ("base_model.model.model.embed_tokens.lora_embedding_B.default", "model.embed_tokens"),
    ],
)
def test_a_fused_module_begins_as_the_first_of_its_parts(name: str, module: str) -> None:
    assert module_of(name) == module


def test_what_the_ranks_hold_of_the_start_is_put_together_as_it_was_drawn() -> None:
    """Four ranks, two KV heads: the query heads stand in another order there."""
    name = "model.layers.0.self_attn.o_proj.lora_A.weight"
    shape = AdapterShape(4, 4, 2, True, {name: 1})
    drawn = draw_start(SHAPE, ("o_proj",), rank=4, seed=3)[module_of(name)]
    held = in_ranks_order(name, drawn, shape)
    assert not held.equal(drawn)
    assert consolidate([{name: part} for part in held.chunk(4, 1)], shape)[name].equal(drawn)
