"""The merged weights against PEFT's own, over random adapters."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steps.merge.outputs import merge_folders
from tests.merge.conftest import Workshop, adapted, load, merged_by_peft, stored

NUMBER = itertools.count()
FLIPPED_ONE_IN = 8_000
"""Of half precision's values: an fp32 sum has 13 to 16 bits more, so about one in so many lies next to the middle."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@st.composite
def lora_configs(draw: st.DrawFn) -> dict[str, Any]:
    """LoraConfig arguments of every kind that can be merged."""
    targets = draw(st.lists(st.sampled_from(LINEAR), min_size=1, max_size=7, unique=True))
    config: dict[str, Any] = {
        "r": draw(st.sampled_from([1, 2, 3, 4, 8, 16, 33])),
        "lora_alpha": draw(st.sampled_from([1, 7, 16, 32])),
        "target_modules": targets,
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
    }
    if draw(st.booleans()):
        config["rank_pattern"] = {draw(st.sampled_from(targets)): draw(st.integers(1, 9))}
    if draw(st.booleans()):
        config["alpha_pattern"] = {rf"layers\.1\..*{draw(st.sampled_from(targets))}": draw(st.integers(1, 9))}
    if draw(st.booleans()):
        config["modules_to_save"] = ["lm_head"]
    if not config["use_dora"] and draw(st.booleans()):
        config["target_modules"] = [*targets, "embed_tokens"]
    return config


def merged(workshop: Workshop, base: Path, adapter: Path, dtype: str = "auto") -> Path:
    out = workshop.root / f"out-{next(NUMBER)}"
    merge_folders(base, adapter, out, dtype)
    return out


def assert_same_bits(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    import torch

    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert different == []


def check_fp32(workshop: Workshop, config: dict[str, Any], seed: int, sizes: dict[str, int]) -> None:
    base = workshop.base(f"fp32-{'-'.join(map(str, sizes.values()))}", **sizes)
    adapter = workshop.adapter(base, f"adapter-{next(NUMBER)}", seed=seed, **config)
    assert_same_bits(stored(merged(workshop, base, adapter)), merged_by_peft(base, adapter))


def check_half(workshop: Workshop, config: dict[str, Any], seed: int, dtype: str) -> None:
    """PEFT's fp32 sum rounded to nearest even, but for the few values so near to the middle that the sum's last bit decides.

    That bit depends on the order in which a BLAS library adds; a second rounding, as PEFT's own, would change far more values.
    """
    import torch

    base = workshop.base(dtype, dtype=dtype)
    adapter = workshop.adapter(base, f"adapter-{next(NUMBER)}", seed=seed, **config)
    ours, theirs = stored(merged(workshop, base, adapter)), merged_by_peft(base, adapter)
    assert ours.keys() == theirs.keys()
    changed = 0
    for name, tensor in ours.items():
        assert tensor.dtype == getattr(torch, dtype), name
        flipped = tensor != theirs[name].to(tensor.dtype)
        changed += int(flipped.sum())
        slack = theirs[name].abs().max() * 2**-22
        least, most = ((theirs[name] + sign * slack).to(tensor.dtype) for sign in (-1, 1))
        assert bool(((least <= tensor) & (tensor <= most))[flipped].all()), name
    assert changed <= 1 + sum(tensor.numel() for tensor in ours.values()) // FLIPPED_ONE_IN


QUICK = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
LONG = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIZES = st.fixed_dictionaries(
    {"hidden_size": st.sampled_from([32, 40, 96]), "intermediate_size": st.sampled_from([24, 64, 100])}
)


@given(config=lora_configs(), seed=st.integers(0, 99))
@QUICK
def test_fp32_has_the_bits_of_peft(workshop: Workshop, config: dict[str, Any], seed: int) -> None:
    check_fp32(workshop, config, seed, {"hidden_size": 32})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@given(config=lora_configs(), seed=st.integers(0, 99))
@QUICK
def test_half_precision_is_the_fp32_sum_rounded_once(
    workshop: Workshop, dtype: str, config: dict[str, Any], seed: int
) -> None:
    check_half(workshop, config, seed, dtype)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@given(config=lora_configs(), seed=st.integers(0, 9999), sizes=SIZES)
@LONG
def test_fp32_has_the_bits_of_peft_over_many_adapters(
    workshop: Workshop, config: dict[str, Any], seed: int, sizes: dict[str, int]
) -> None:
    check_fp32(workshop, config, seed, sizes)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@given(config=lora_configs(), seed=st.integers(0, 9999))
@LONG
def test_half_precision_is_rounded_once_over_many_adapters(
    workshop: Workshop, dtype: str, config: dict[str, Any], seed: int
) -> None:
    check_half(workshop, config, seed, dtype)


def test_rows_longer_than_a_block_and_tensors_of_several_tasks_are_merged_the_same(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps.merge import stream

    monkeypatch.setattr(stream, "BLOCK_ELEMENTS", 16)
    monkeypatch.setattr(stream, "TASK_ELEMENTS", 30 * 32)
    config = {"r": 4, "target_modules": [*LINEAR, "embed_tokens"], "modules_to_save": ["lm_head"]}
    check_fp32(workshop, config, 5, {"hidden_size": 32})
    check_half(workshop, config, 5, "bfloat16")


def test_an_adapter_stored_in_bf16_is_read_as_peft_reads_it(workshop: Workshop) -> None:
    base = workshop.base("fp32-32", hidden_size=32)
    adapter = workshop.adapter(base, "bf16-adapter", store_as="bfloat16", r=4, target_modules=list(LINEAR))
    assert_same_bits(stored(merged(workshop, base, adapter)), merged_by_peft(base, adapter))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_in_the_merged_model(workshop: Workshop, bias: str) -> None:
    base = workshop.base("biased", attention_bias=True)
    adapter = workshop.adapter(base, f"bias-{bias}", r=2, target_modules=["q_proj", "o_proj"], bias=bias)
    assert_same_bits(stored(merged(workshop, base, adapter)), merged_by_peft(base, adapter))


def test_weights_stored_as_in_out_are_merged_as_peft_merges_them(workshop: Workshop) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    base = workshop.root / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)).save_pretrained(base)
    adapter = workshop.adapter(base, "gpt2-adapter", r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    theirs = merged_by_peft(base, adapter)
    del theirs["lm_head.weight"]  # tied
    assert_same_bits(stored(merged(workshop, base, adapter)), theirs)


@pytest.mark.parametrize(
    "lora",
    [
        pytest.param({"target_modules": ["q_proj"]}, id="neither changed"),
        pytest.param({"target_modules": ["q_proj", "embed_tokens"]}, id="embedding adapted"),
        pytest.param({"target_modules": ["q_proj", "lm_head"]}, id="head adapted"),
        pytest.param({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, id="head saved"),
        pytest.param({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, id="embedding saved"),
    ],
)
def test_a_model_with_tied_embeddings_computes_what_the_adapted_one_does(
    workshop: Workshop, lora: dict[str, Any]
) -> None:
    import torch

    base = workshop.base("tied", tie_word_embeddings=True)
    adapter = workshop.adapter(base, f"tied-{next(NUMBER)}", r=4, **lora)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = adapted(base, adapter).eval()(tokens).logits
        ours = load(merged(workshop, base, adapter)).eval()(tokens).logits
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_numpy_and_torch_multiply_to_the_same_bits_at_usual_ranks_or_differ_in_the_last_ones() -> None:
    from steps.merge.arithmetic import numpy_product, torch_product

    rng = np.random.default_rng(0)
    for rank in (4, 16, 64, 256):
        up, down = rng.standard_normal((70, rank), np.float32), rng.standard_normal((rank, 96), np.float32)
        first, second = np.empty((70, 96), np.float32), np.empty((70, 96), np.float32)
        numpy_product(up, down, first)
        torch_product()(up, down, second)
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@given(values=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
@settings(max_examples=200, deadline=None)
def test_bf16_is_rounded_to_nearest_even_as_torch_does(values: list[int]) -> None:
    import torch

    from steps.merge.arithmetic import narrow

    floats = np.array(values, np.uint32).view(np.float32)
    floats = floats[~np.isnan(floats)]
    raw = np.empty(len(floats) * 2, np.uint8)
    narrow(floats.copy(), "BF16", raw, np.empty(len(floats), np.uint32))
    expected = torch.from_numpy(floats.copy()).bfloat16().view(torch.int16).numpy()
    assert (raw.view(np.int16) == expected).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_another_dtype_can_be_asked_for(workshop: Workshop, dtype: str) -> None:
    import json

    import torch

    base = workshop.base("bfloat16", dtype="bfloat16")
    adapter = workshop.adapter(base, f"to-{dtype}", r=4, target_modules=["q_proj"])
    out = merged(workshop, base, adapter, dtype)
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in merged_by_peft(base, adapter).items()}
    assert_same_bits(stored(out), expected)
    config = json.loads((out / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == dtype
    assert load(out, "auto").dtype == getattr(torch, dtype)
