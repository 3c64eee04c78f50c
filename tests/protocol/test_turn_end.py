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
