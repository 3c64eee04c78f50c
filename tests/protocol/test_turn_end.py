from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.base.sources.random import write_tiny
from steps.protocol.turn_end import end_of_turn
from steps.settings.catalog import RandomModel


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny(folder, RandomModel())
    return AutoTokenizer.from_pretrained(folder)


TURN = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        pytest.param(None, "<|im_end|>", id="its own"),
        pytest.param(TURN + "<|im_end|>\n{% endfor %}<|endoftext|>", "<|im_end|>", id="another end behind it"),
        pytest.param(TURN + " <|endoftext|>{% endfor %}", "<|endoftext|>", id="a blank before it"),
        pytest.param(TURN + "\n\n{% endfor %}", None, id="no token"),
        pytest.param("{{ raise_exception('no') }}", None, id="a template that refuses"),
        pytest.param("{% for %}", None, id="no template"),
    ],
)
def test_the_token_behind_an_answer(tokenizer: Any, template: str | None, end: str | None) -> None:
    expected = () if end is None else (tokenizer.convert_tokens_to_ids(end),)
    assert end_of_turn(tokenizer, template) == expected


def test_no_template_no_end(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(tmp_path)
    bare.chat_template = None
    assert end_of_turn(bare) == ()


ENDS = {
    "deepseek-r1-distill": "<｜end▁of▁sentence｜>",
    "gemma-3": "<end_of_turn>",
    "granite-3.3": "<|end_of_text|>",
    "llama-3.1": "<|eot_id|>",
    "mistral-nemo": "</s>",
    "no-end": None,
    "phi-4": "<|im_end|>",
    "qwen2.5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "smollm2": "<|im_end|>",
    "smollm3": "<|im_end|>",
}


@pytest.mark.parametrize("name", ENDS)
def test_the_ends_of_real_templates(tokenizer: Any, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    own = AutoTokenizer.from_pretrained(tmp_path)
    own.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": sorted(filter(None, ENDS.values()))})
    template = (Path(__file__).resolve().parents[1] / "prepare" / "templates" / f"{name}.jinja").read_text("utf-8")
    end = ENDS[name]
    assert end_of_turn(own, template) == (() if end is None else (own.convert_tokens_to_ids(end),))
