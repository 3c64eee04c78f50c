"""The sentences: they name what failed, where, and what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.errors import JobPermanentError, JobRetriesExhausted, JobTimeout
from steps.job import messages
from steps.job.classify import Failure
from steps.job.history import Verdict
from steps.job.retry import GiveUp, Resubmit
from steps.protocol.failure_class import FailureClass
from tests.job.job_fakes import make_job


@pytest.mark.parametrize("kind", list(FailureClass))
def test_every_class_has_advice(kind: FailureClass, tmp_path: Path) -> None:
    failure = Failure(kind, "it broke\nsecond line", 1, "node-a", 30, ("the trace",))
    text = messages.final_message(make_job(tmp_path), 2, failure, GiveUp("exhausted", "enough"), 20)
    for part in (
        "tiny-orders",
        "attempt 2",
        f"{kind} after step 30",
        "it broke",
        "enough",
        "the trace",
        "002/evidence",
        "step 20",
    ):
        assert part in text
    assert "second line" not in text


def test_message_before_any_checkpoint_says_so(tmp_path: Path) -> None:
    text = messages.final_message(make_job(tmp_path), 1, Failure(FailureClass.USER, ""), GiveUp("permanent", "no"), 0)
    assert "user: no message" in text
    assert "no checkpoint was complete yet" in text


@pytest.mark.parametrize(
    ("decision", "part"),
    [
        (Resubmit(30, "", 0), "attempt 2 starts in 30 s from the start"),
        (Resubmit(0, "", 7, ("a", "b")), "attempt 2 starts now from step 7 of 10, without a, b if others have room"),
    ],
)
def test_retry_says_when_where_and_without_what(decision: Resubmit, part: str, tmp_path: Path) -> None:
    assert part in messages.describe_retry(make_job(tmp_path), 1, Failure(FailureClass.NODE, "x"), decision)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("permanent", JobPermanentError),
        ("exhausted", JobRetriesExhausted),
        ("timeout", JobTimeout),
        ("?", JobPermanentError),
    ],
)
def test_verdict_becomes_its_exception(kind: str, error: type[Exception]) -> None:
    made = messages.error_of(Verdict(kind, "user", 3, "words"))
    assert type(made) is error
    assert (str(made), made.failure_class, made.attempt) == ("words", "user", 3)
    assert "nothing was started" in str(
        messages.error_of(Verdict(kind, "user", 3, "words"), remembered_in=Path("/runs/17"))
    )


def test_holder_is_named_when_known(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert "process 7 on here already watches" in messages.describe_holder(job, {"pid": 7, "node": "here"})
    assert "another process already watches" in messages.describe_holder(job, {})
