from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.evaluate.attention import NAME
from steps.evaluate.generate import end_tokens, generate, generate_batch
from steps.evaluate.measure import load_model
from steps.library_versions import cache_argument
from tests.evaluate.evaluate_data import alone, token_rows, write_model


@pytest.mark.parametrize("shared", [True, False], ids=["one beginning", "different beginnings"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_answers_in_batches_equal_answers_one_by_one(
    loaded: tuple[Any, Any], theirs: Any, shared: bool, batch_size: int
) -> None:
    prompts = token_rows(shared=shared)
    free = [alone(theirs, prompt, ends=frozenset({511}), most=24) for prompt in prompts]
    assert len({tuple(answer) for answer in free}) > 3, "the model says the same to everything: nothing is tested"
    ends = frozenset({free[0][5], free[1][11], free[2][1]})
    expected = [alone(theirs, prompt, ends=ends, most=24) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 2, "all end at the same step: nothing is tested"
    assert generate(loaded[0], prompts, ends=ends, max_new_tokens=24, batch_size=batch_size) == expected


def test_one_new_token_is_attended_to_as_torchs_kernel_does(loaded: tuple[Any, Any], theirs: Any) -> None:
    import torch

    assert loaded[0].config._attn_implementation == NAME
    assert theirs.config._attn_implementation == "sdpa"
    tokens = torch.tensor(token_rows()[:1]).repeat(2, 1)
    mask = torch.ones(2, tokens.shape[1] + 1, dtype=torch.long)
    mask[1, :5] = 0
    found = []
    with torch.inference_mode():
        for model in (loaded[0], theirs):
            cache = model(input_ids=tokens, attention_mask=mask[:, :-1], use_cache=True)[cache_argument(model)]
            step = {"input_ids": tokens[:, -1:], "attention_mask": mask, cache_argument(model): cache}
            found.append(model(**step, use_cache=True).logits)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_all_ending_at_once_is_an_end(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    assert generate(model, token_rows(), ends=frozenset(range(512)), max_new_tokens=8, batch_size=4) == [[]] * 7


def test_an_answer_stops_where_the_models_context_is_full(tmp_path: Path) -> None:
    model, _ = load_model(write_model(tmp_path / "short", max_positions=32), precision="fp32")
    prompts = [[5] * 30, [6] * 32, [7] * 4, [8] * 40]
    heard: list[int] = []
    found = generate(model, prompts, ends=frozenset(), max_new_tokens=9, batch_size=4, on_answers=heard.append)
    assert [len(answer) for answer in found] == [2, 0, 9, 0]
    assert heard == [4]


def test_tokens_are_heard_as_they_come(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    heard: list[list[int]] = [[], [], []]
    prompts = token_rows()[:3]
    found = generate_batch(
        model, prompts, ends=frozenset(), max_new_tokens=5, on_token=lambda row, token: heard[row].append(token)
    )
    assert heard == found


def test_end_tokens_come_from_tokenizer_config_generation_config_and_the_templates_own_turn_end(
    tiny: Path,
) -> None:
    model, tokenizer = load_model(tiny, precision="fp32")
    tokenizer.eos_token = "<|endoftext|>"
    model.config.eos_token_id = None
    model.generation_config.eos_token_id = [7, 8]
    assert end_tokens(model, tokenizer) == {0, 2, 7, 8}
