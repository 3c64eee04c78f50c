"""`generate`: what it says of folders that hold no model."""

from __future__ import annotations

from pathlib import Path

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
