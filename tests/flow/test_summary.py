"""The last words of a run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from steps.flow.summary import conclude, verdict
from steps.protocol.records import MergedModel
from tests.shared.sample_records import ADAPTER, REPORT

MERGED = MergedModel("/run/merged", "id3", "m" * 64, "bfloat16", 10, 4, 1000, 1.0)


def last_words(capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    report = replace(REPORT, **changes).to_dict()
    conclude(SimpleNamespace(dry_run=False, report=report, adapter=ADAPTER.to_dict(), merged=MERGED.to_dict()))
    return capsys.readouterr().out.splitlines()


def test_the_result_is_said_once_with_its_interval_and_a_full_stop(capsys: pytest.CaptureFixture[str]) -> None:
    figures = "score 0.0% → 93.8%, a difference of +93.8% (95 % interval +85.0% to +99.0%)"
    details = {"interval": [0.85, 0.99], "words": "exact match 0/32 → 30/32"}
    lines = last_words(capsys, gate=f"passed: the tuned model is better: {figures}", details=details)
    assert lines[1:6] == [
        "The model learned: both score and loss are better than the base model's.",
        "  exact match on 32 samples it never saw: 0.0% → 93.8%, difference +85.0 to +99.0 points (95% interval)",
        "  Exact match 0/32 → 30/32.",
        "  loss on held-out samples: 3.0000 → 0.2500",
        "  Gate passed: the tuned model is better.",
    ]


LEARNED, WORSE = {"base_loss": 3.0, "tuned_loss": 0.2}, {"base_loss": 0.2, "tuned_loss": 3.0}


@pytest.mark.parametrize(
    ("scores", "details", "losses", "words"),
    [
        ((0.1, 0.9), {"interval": [0.7, 0.9]}, LEARNED, "The model learned: both score and loss"),
        ((0.1, 0.9), {"interval": [0.7, 0.9]}, WORSE, "Mixed: the score is higher"),
        ((0.4, 0.5), {"interval": [-0.1, 0.3]}, LEARNED, "loss is lower than the base model's; whether its answers are better"),
        ((0.4, 0.5), {"interval": [0.03, 0.3], "differing": 5}, LEARNED, "better, 32 samples cannot tell."),
        ((0.4, 0.5), {"interval": [-0.1, 0.3]}, WORSE, "The loss is not lower than the base model's; whether"),
        ((0.5, 0.5), {"interval": [-0.1, 0.1]}, LEARNED, "The model learned a little"),
        ((0.5, 0.5), {}, WORSE, "The model did not learn: neither"),
        ((0.9, 0.1), {"interval": [-0.9, -0.7]}, LEARNED, "Mixed: the loss is lower"),
        ((0.9, 0.1), {"interval": [-0.9, -0.7]}, WORSE, "The model did not learn: its answers are worse"),
    ],
)  # fmt: skip
def test_the_verdict_goes_by_the_interval_and_not_by_the_means(
    scores: tuple[float, float], details: dict[str, Any], losses: dict[str, float], words: str
) -> None:
    assert words in verdict(replace(REPORT, base_score=scores[0], tuned_score=scores[1], details=details, **losses))


def test_one_sample_is_one_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert "on 1 sample it never saw" in "\n".join(last_words(capsys, samples=1))


def test_a_prompt_of_data_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in "\n".join(last_words(capsys, gate="passed: \x1b[31mred", score_name="\x1b]0;x\x07"))
