"""A tokenizer with more tokens than the embedding has rows is refused, with both numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.base.vocabulary import check_vocabulary
from steps.errors import ModelError


def write(folder: Path, *, rows: int, vocabulary: object, **files: Any) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"model.embed_tokens.weight": torch.zeros(rows, 4)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocabulary}, "added_tokens": files.pop("added", [])})
    )
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


EIGHT = {f"t{number}": number for number in range(8)}
EXTRA = {"id": 8, "content": "<x>", "special": True}


@pytest.mark.parametrize(
    ("rows", "given"),
    [
        pytest.param(8, {}, id="as many"),
        pytest.param(64, {}, id="padded rows"),
        pytest.param(8, {"vocabulary": [["a", 0.0]] * 8}, id="a unigram vocabulary"),
        pytest.param(8, {"added": [EXTRA]}, id="a special token that text never holds, as Gemma 3's for images"),
        pytest.param(9, {"added": [EXTRA | {"special": False}]}, id="an added token with a row"),
    ],
)
def test_a_tokenizer_that_fits_passes(tmp_path: Path, rows: int, given: dict[str, Any]) -> None:
    write(tmp_path, rows=rows, **{"vocabulary": EIGHT, **given})
    check_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("rows", "given", "tokens"),
    [
        pytest.param(7, {}, 8, id="one too many"),
        pytest.param(7, {"vocabulary": [["a", 0.0]] * 8}, 8, id="a unigram vocabulary"),
        pytest.param(8, {"added": [EXTRA | {"special": False}]}, 9, id="an added word"),
        pytest.param(8, {"added": [EXTRA], "tokenizer_config": {"pad_token": "<x>"}}, 9, id="padding"),
        pytest.param(
            8, {"added": [EXTRA], "tokenizer_config": {"chat_template": "{{ '<x>' }}"}}, 9, id="in the template"
        ),
        pytest.param(
            8, {"added": [EXTRA], "special_tokens_map": {"additional_special_tokens": ["<x>"]}}, 9, id="additional"
        ),
    ],
)
def test_a_token_without_a_row_is_refused_with_both_numbers(
    tmp_path: Path, rows: int, given: dict[str, Any], tokens: int
) -> None:
    write(tmp_path, rows=rows, **{"vocabulary": EIGHT, **given})
    with pytest.raises(ModelError, match=rf"the tokenizer has {tokens} tokens, the model's embedding {rows} rows"):
        check_vocabulary(tmp_path)


def test_files_that_say_nothing_are_left_to_whoever_loads_them(tmp_path: Path) -> None:
    check_vocabulary(tmp_path)
    write(tmp_path, rows=4, vocabulary=None)
    (tmp_path / "tokenizer.json").write_text("{")
    check_vocabulary(tmp_path)
