from __future__ import annotations

from pathlib import Path

import pytest

from steps.errors import ConfigError
from steps.evaluate.scoring.own_score import load_own, source_of
from steps.evaluate.scoring.scores import score_answer
from steps.settings.config import parse_settings

SOURCE = """
def share(answer, reference):
    return 0.25
def same(answer, reference):
    return answer == reference
def too_much(answer, reference):
    return 2
def text(answer, reference):
    return "good"
def fails(answer, reference):
    raise RuntimeError("no luck")
value = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own_scores_for_a_test.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def test_a_function_of_ones_own_scores(module: Path) -> None:
    assert score_answer("own_scores_for_a_test:share", "a", "b").value == 0.25
    found = score_answer("own_scores_for_a_test:same", "<think>x</think> a", "a")
    assert (found.value, found.exact, found.valid) == (1.0, True, None)
    assert source_of("own_scores_for_a_test:share") is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module_here:f", r"cannot be loaded: ModuleNotFoundError: .* on PYTHONPATH"),
        ("own_scores_for_a_test:nothing", "cannot be loaded: AttributeError"),
        ("own_scores_for_a_test:value", "is a int, expected a function"),
        ("own_scores_for_a_test:too_much", "returned 2 for the answer 'a'; expected a number from 0 to 1"),
        ("own_scores_for_a_test:text", "failed on the answer 'a': ValueError"),
        ("own_scores_for_a_test:fails", "failed on the answer 'a': RuntimeError: no luck"),
    ],
)
def test_what_is_wrong_with_it_is_said(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluation.score: {name} {words}"):
        load_own(name)("a", "b")


@pytest.mark.parametrize("name", ["rogue_l", "module.function", "a b:c", ":f", "m:", "os; import x:f"])
def test_a_name_of_no_score_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.score: must be auto, exact_match, .* or module:function"):
        parse_settings({"evaluation": {"score": name}})


@pytest.mark.parametrize("name", ["auto", "rouge_l", "my.scores:f1", "größe:maß"])
def test_a_name_of_a_score_is_taken(name: str) -> None:
    assert parse_settings({"evaluation": {"score": name}}).evaluation.score == name
