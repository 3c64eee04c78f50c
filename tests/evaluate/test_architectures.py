"""Answers in batches are those of transformers' `generate` on each prompt alone, and losses those of plain forward passes, for
every architecture: the quick path is taken only where it says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.evaluate.attention import quicken_steps
from steps.evaluate.generate import generate
from steps.evaluate.loss import mean_loss
from steps.evaluate.ways import way_of
from tests.evaluate.architectures import CONFIGS, VOCABULARY, make_model
from tests.evaluate.evaluate_data import alone, plain_loss, target_sample, token_rows

QUICK = ("mistral window", "gpt2", "opt", "lfm2", "bloom")
"""In `make test`: each for another reason why a batch may differ from its rows."""
THROUGH_GENERATE = frozenset(
    {
        "gemma2",
        "gemma3_text",
        "gpt_neo",
        "granitemoehybrid",
        "bloom",
        "mpt",
        "lfm2",
        "mamba",
        "qwen3_next",
    }
    | {"gpt_oss", *(name for name in CONFIGS if name.endswith("window"))}
)
"""The others take our own steps."""
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS]


def as_loaded(model: Any, folder: Path) -> Any:
    """The model from files, as evaluation has it."""
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder)
    found = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    quicken_steps(found)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_batches_say_what_each_row_says_alone(name: str, tmp_path: Path) -> None:
    theirs = make_model(name)
    ours = as_loaded(theirs, tmp_path / "model")
    for shared in (True, False):
        prompts = [[token % VOCABULARY for token in row] for row in token_rows(shared=shared)]
        free = [alone(theirs, prompt, ends=frozenset({2}), most=10) for prompt in prompts]
        assert len({tuple(answer) for answer in free}) > 3, "the model says the same to everything: nothing is tested"
        ends = frozenset({2, *free[0][3:4], *free[1][6:7]})
        expected = [alone(theirs, prompt, ends=ends, most=10) for prompt in prompts]
        assert generate(ours, prompts, ends=ends, max_new_tokens=10, batch_size=4) == expected
        samples = [target_sample(prompt, len(prompt) // 3) for prompt in prompts if len(prompt) > 1]
        assert mean_loss(ours, samples) == pytest.approx(plain_loss(theirs, samples), abs=1e-4)
    assert (way_of(ours, prompts) == "quick") is (name not in THROUGH_GENERATE)


def test_a_model_whose_own_settings_ask_for_a_penalty_is_asked_through_generate(
    loaded: tuple[Any, Any], theirs: Any
) -> None:
    import copy

    model, reference = copy.deepcopy(loaded[0]), copy.deepcopy(theirs)
    for one in (model, reference):
        one.generation_config.repetition_penalty = 1.3
    prompts = token_rows()
    expected = [alone(reference, prompt, ends=frozenset({511}), most=12) for prompt in prompts]
    assert generate(model, prompts, ends=frozenset({511}), max_new_tokens=12, batch_size=4) == expected
    assert expected != [alone(theirs, prompt, ends=frozenset({511}), most=12) for prompt in prompts]


def test_learned_positions_are_never_counted_past_their_table(tmp_path: Path) -> None:
    model = make_model("opt")
    prompts = [[5] * 250, [6] * 4, [7] * 255]
    found = generate(model, prompts, ends=frozenset(), max_new_tokens=20, batch_size=4)
    assert [len(answer) for answer in found] == [6, 20, 1]


def test_tokens_are_heard_from_generate_too(tmp_path: Path) -> None:
    from steps.evaluate.generate import generate_batch

    model = make_model("mistral window")
    prompts = [[token % VOCABULARY for token in row] for row in token_rows()[:3]]
    free = generate_batch(model, prompts, ends=frozenset(), max_new_tokens=8)
    heard: list[list[int]] = [[], [], []]
    found = generate_batch(
        model,
        prompts,
        ends=frozenset({free[1][3]}),
        max_new_tokens=8,
        on_token=lambda row, token: heard[row].append(token),
    )
    assert heard == found
    assert len(found[1]) <= 3
