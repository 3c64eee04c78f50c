from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ModelError
from steps.evaluate.chat import PLAIN_TEMPLATE, answer
from steps.evaluate.measure import load_model
from steps.prepare.chat.template import FALLBACK
from steps.protocol.tokenizer_files import copy_tokenizer, make_usable
from tests.evaluate.evaluate_data import write_model


def ask(folder: Path, *, base: Path | None = None, prompt: str = "Hello", most: int = 12) -> tuple[str, list[str]]:
    pieces: list[str] = []
    text = answer(folder, prompt, base=base, system="Be brief.", max_new_tokens=most, stream=pieces.append)
    return text, pieces


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model, and beside it the model with the adapter merged in."""
    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("tuned")
    model, tokenizer = load_model(tiny, precision="fp32")
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(folder / "adapter")
    tuned.merge_and_unload().save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    return folder / "adapter"


def test_the_answer_comes_in_pieces_that_add_up(tiny: Path) -> None:
    text, pieces = ask(tiny)
    assert text
    assert len(pieces) > 1
    assert "".join(pieces) == text


def test_an_adapter_on_its_base_answers_as_the_merged_model_does(tiny: Path, adapter: Path) -> None:
    text, _ = ask(adapter, base=tiny)
    assert text == ask(adapter.parent / "merged")[0]
    assert text != ask(tiny)[0]


def test_an_adapter_is_asked_with_the_template_that_lies_beside_it(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    copy_tokenizer(tiny, folder)
    assert ask(folder, base=tiny) == ask(adapter, base=tiny)
    make_usable(folder, "{{ word }} {{ messages[0]['content'] }}", {"word": "Say:"})
    assert ask(folder, base=tiny) != ask(adapter, base=tiny)


def test_a_character_in_several_tokens_is_shown_whole(loaded: tuple[Any, Any]) -> None:
    from steps.evaluate.chat import _Writer

    _, tokenizer = loaded
    pieces: list[str] = []
    writer = _Writer(tokenizer, pieces.append)
    for token in tokenizer("né 🙂!").input_ids:
        writer.write(token)
    assert writer.close() == "né 🙂!"
    assert "".join(pieces) == "né 🙂!"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_an_adapter_without_its_base_asks_for_it(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "owner/name"}))
    with pytest.raises(ModelError, match=r"is an adapter, and .*'owner/name'.* give the base with --base FOLDER"):
        ask(folder)


def test_a_base_that_is_no_model_is_named(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"--base {tmp_path} is no model folder"):
        ask(adapter, base=tmp_path)


def test_a_damaged_adapter_config_is_named(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(ModelError, match=r"adapter_config.json is damaged"):
        ask(folder, base=tiny)


def test_damaged_adapter_weights_are_named(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"cannot put the adapter in .* on the base in"):
        ask(folder, base=tiny)


def test_an_adapter_of_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    from steps.base.sources.random import write_tiny
    from steps.settings.catalog import RandomModel

    write_tiny(tmp_path / "wide", RandomModel(hidden_size=128))
    with pytest.raises(ModelError, match="its own base model"):
        ask(adapter, base=tmp_path / "wide")


def test_a_folder_around_the_model_is_met_with_its_name(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "merged-0123")
    with pytest.raises(ModelError, match=r"neither a model .* did you mean .*merged-0123\?"):
        ask(tmp_path)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a model"):
        ask(tmp_path)


def test_a_prompt_longer_than_the_models_context_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "short", max_positions=32)
    with pytest.raises(ModelError, match="the model reads 32: shorten it"):
        ask(folder, prompt="word " * 40)


def test_a_tokenizer_without_a_template_gets_the_one_it_was_trained_with(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps(config))
    assert ask(tmp_path / "plain")[0] != ask(tiny)[0]
    assert PLAIN_TEMPLATE == FALLBACK
