"""A tokenizer that is handed on works by the usual snippets, with real transformers on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.protocol.tokenizer_files import CONFIG, TEMPLATE, copy_tokenizer, make_usable, template_arguments

CHAT = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a tokenizer of the plain kind, which hands out token_type_ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<end>"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    folder = tmp_path / "base"
    outputs = ["input_ids", "token_type_ids", "attention_mask"]  # transformers 4's own default
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", model_input_names=outputs).save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"model_input_names": outputs}))
    (folder / "config.json").write_text("{}")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_generate_takes_what_the_tokenizer_hands_out(base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 257}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **sizes))
    before = AutoTokenizer.from_pretrained(base)
    with pytest.raises(ValueError, match="token_type_ids"):
        model.generate(**before("hello", return_tensors="pt"), max_new_tokens=2)
    folder = tmp_path / "adapter"
    folder.mkdir()
    copy_tokenizer(base, folder)
    make_usable(folder, CHAT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    assert model.generate(**tokenizer("hello", return_tensors="pt"), max_new_tokens=2, pad_token_id=256).shape == (1, 7)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "user: hi\n"


def test_only_the_tokenizer_is_copied_and_what_is_there_stays(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG).write_text('{"mine": true}')
    copy_tokenizer(base, folder)
    assert names(folder) == names(base) - {"config.json"}
    assert json.loads((folder / CONFIG).read_text()) == {"mine": True}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, ["input_ids", "attention_mask"]),
        ({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}, ["input_ids", "attention_mask"]),
        ({"model_input_names": ["input_ids"]}, ["input_ids"]),
    ],
)
def test_token_types_are_left_out(tmp_path: Path, before: dict[str, Any], after: list[str]) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"kept": "ü", **before}))
    make_usable(tmp_path, "")
    assert json.loads((tmp_path / CONFIG).read_text("utf-8")) == {"kept": "ü", "model_input_names": after}
    written = (tmp_path / CONFIG).stat().st_mtime_ns
    make_usable(tmp_path, "")
    assert (tmp_path / CONFIG).stat().st_mtime_ns == written


def test_the_template_of_the_training_wins_over_the_bases_own(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE).write_text("old")
    make_usable(tmp_path, "new ü")
    assert names(tmp_path) == {TEMPLATE}
    assert (tmp_path / TEMPLATE).read_text("utf-8") == "new ü"


def test_a_list_of_named_templates_is_kept_where_the_training_used_one_of_them(tmp_path: Path) -> None:
    named = [{"name": "default", "template": CHAT}, {"name": "tool_use", "template": "x"}]
    (tmp_path / CONFIG).write_text(json.dumps({"chat_template": named}))
    make_usable(tmp_path, CHAT)
    assert names(tmp_path) == {CONFIG}
    make_usable(tmp_path, "another")
    assert (tmp_path / TEMPLATE).read_text() == "another"


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"])
def test_a_damaged_tokenizer_is_left_for_its_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_text(text, "latin-1")
    make_usable(tmp_path, "t")
    assert (tmp_path / CONFIG).read_text("latin-1") == text


def test_arguments_of_the_template_are_kept_beside_it_and_transformers_passes_over_them(
    base: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "adapter"
    folder.mkdir()
    copy_tokenizer(base, folder)
    assert template_arguments(folder) == {}
    make_usable(folder, CHAT, {"enable_thinking": False})
    assert template_arguments(folder) == {"enable_thinking": False}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "user: hi\n"
