"""docs/settings.md is what the options and settings say of themselves."""

from __future__ import annotations

from pathlib import Path

from steps.settings.config import Settings
from steps.settings.document import document
from steps.settings.options import OPTIONS

TEXT = document()


def test_the_file_is_current() -> None:
    written = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text()
    assert written == TEXT, "run `make docs`"


def test_every_option_and_every_section_is_in_it() -> None:
    assert [name for name in OPTIONS if f"`--{name.replace('_', '-')}`" not in TEXT] == []
    assert [name for name in Settings.model_fields if f"`{name}" not in TEXT] == []
    assert "| `deadlines.grace_s` | number > 0 | `60` | Between asking workers to stop" in TEXT


def test_every_row_says_what_it_means() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []
