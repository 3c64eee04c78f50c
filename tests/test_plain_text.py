"""Text is shown as it is, and nothing of it acts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.plain_text import both_ends, counted, markdown, shorten, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("a\r\nb\rc", "a\nb␍c"),
        ("\x00\x1b[31m\x7f", "␀␛[31m␡"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("\u202efdp.exe", "⟨U+202E⟩fdp.exe"),
        ("\ud800", "⟨U+D800⟩"),
        ("請把 القاهرة ไทย 👩‍🚀", "請把 القاهرة ไทย 👩‍🚀"),
    ],
)
def test_unseen_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_what_is_visible_can_be_written_and_stays(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("last_number", "last_number"),
        ("_em_ *b*", r"\_em\_ \*b\*"),
        ("a|b\\|c", "a&#124;b&#92;&#124;c"),
        ("<img onerror=x>", "&lt;img onerror=x&gt;"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("`a`\n\n# b", r"&#96;a&#96; \# b"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_markdown_is_shown_as_text(text: str, line: str) -> None:
    assert markdown(text) == line


def test_of_a_long_chain_of_errors_the_last_word_stays() -> None:
    assert both_ends("abc", 3) == "abc"
    image = "x" * 500
    told = both_ends(f"failed to pull {image}: not found", 100)
    assert told.startswith("failed to pull xxx")
    assert told.endswith("xxx: not found")
    assert len(told) == 103


def test_a_long_text_says_how_much_is_missing() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "abc … (1 more character)"
    assert counted(2, "process", "processes") == "2 processes"
    assert counted(1200, "sample") == "1,200 samples"
