"""`generate`: what it says of folders that hold no model, and that no answer acts on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.protocol.rundir import write_json
from tests.cli.cli_harness import call


def test_generate_from_what_is_no_model_is_said_in_words(tmp_path: Path) -> None:
    result = call("generate", tmp_path, "Hello")
    assert result.exit_code == 1
    assert result.output.startswith("Unusable model: ")
    assert str(tmp_path) in result.output


def test_an_adapter_without_its_base_says_what_to_give(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "/gone/tiny"})
    result = call("generate", tmp_path, "Hello")
    assert result.exit_code == 1
    assert "--base" in result.output


def test_what_a_model_says_is_shown_and_never_acted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hostile(*_: object, stream: Any, **__: object) -> None:
        stream("good \x1b[2J")
        stream("\x9b31m\u202etxt")

    monkeypatch.setattr("steps.evaluate.chat.answer", hostile)
    assert call("generate", tmp_path, "Hello").output == "good ␛[2J⟨U+009B⟩31m⟨U+202E⟩txt\n"
