from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.base.sources.random import write_tiny
from steps.merge.ends import GENERATION, write_ends
from steps.settings.catalog import RandomModel

TURN_END, TEXT_END = 2, 0
"""`<|im_end|>` and `<|endoftext|>` of the tiny tokenizer."""


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "merged", RandomModel())
    config = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    (tmp_path / "merged" / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    return tmp_path / "merged"


def ends(folder: Path) -> Any:
    return json.loads((folder / GENERATION).read_text())["eos_token_id"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (7, [7, TEXT_END, TURN_END]),
        ([7, 8], [7, 8, TEXT_END, TURN_END]),
        (None, [TEXT_END, TURN_END]),
        ([TURN_END, TEXT_END], [TURN_END, TEXT_END]),
    ],
)
def test_the_templates_own_end_and_the_tokenizers_are_added(merged: Path, before: Any, after: list[int]) -> None:
    (merged / GENERATION).write_text(json.dumps({"eos_token_id": before, "temperature": 0.6, "do_sample": True}))
    write_ends(merged)
    assert ends(merged) == after
    assert json.loads((merged / GENERATION).read_text())["temperature"] == 0.6


def test_where_there_was_no_generation_config_the_models_own_tokens_are_kept(merged: Path) -> None:
    from transformers import AutoModelForCausalLM

    (merged / GENERATION).unlink()
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**config, "eos_token_id": 9, "bos_token_id": 1}))
    write_ends(merged)
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert model.generation_config.eos_token_id == [9, TEXT_END, TURN_END]
    assert model.generation_config.bos_token_id == 1


def test_a_tokenizer_that_cannot_be_loaded_is_told_and_left(merged: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (merged / GENERATION).read_bytes()
    (merged / "tokenizer.json").write_text("{")
    write_ends(merged)
    assert (merged / GENERATION).read_bytes() == before
    assert "cannot be loaded" in caplog.text
