"""Each answer of the Kubernetes API becomes the error that its callers wait for, in words that never quote the request."""

from __future__ import annotations

import pytest

from steps.errors import ClusterError, ClusterForbidden
from steps.pytorchjob.api_errors import LONGEST_MESSAGE, Found, Missing, Unready, delay_s, may_pass, refused

ANSWERS: dict[str, tuple[str, int, str, type[ClusterError], str]] = {
    "not there": ("get pytorchjob a", 404, '{"message": "a not found"}', Missing, "in namespace ns: a not found"),
    "there is one": ("create pytorchjob a", 409, '{"message": "a already exists"}', Found, "a already exists"),
    "no log yet": ("read the log of pod a", 400, '{"message": "is waiting to start"}', Unready, "waiting to start"),
    "a wrong request": ("create pytorchjob a", 400, '{"message": "bad"}', ClusterError, "the API answered 400: bad"),
    "not allowed": ("list pods", 403, '{"message": "cannot list"}', ClusterForbidden, "rbac.yaml has what is needed"),
    "nobody": ("list pods", 403, '{"message": "User \\"system:anonymous\\" cannot"}', ClusterError, "saw no login"),
    "unknown": ("list pods", 401, '{"message": "Unauthorized"}', ClusterError, "log in again, then `"),
    "a proxy's page": ("list pods", 502, "<html>", ClusterError, "the API answered 502: Why"),
    "a list": ("list pods", 500, "[]", ClusterError, "the API answered 500: Why"),
    "nothing": ("list pods", 500, "", ClusterError, "the API answered 500: Why"),
}


@pytest.mark.parametrize(("doing", "status", "body", "kind", "words"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_becomes(doing: str, status: int, body: str, kind: type[ClusterError], words: str) -> None:
    error = refused(doing, "ns", status=status, reason="Why", body=body)
    assert type(error) is kind
    assert str(error).startswith(doing)
    assert words in str(error)


def test_a_long_answer_is_cut_and_an_empty_one_says_so() -> None:
    assert len(str(refused("x", "ns", status=500, reason="y" * 9999, body="{}"))) < LONGEST_MESSAGE + 100
    assert "no reason given" in str(refused("x", "ns", status=500, reason="", body="{}"))


@pytest.mark.parametrize("status", [None, 0, 401, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int | None) -> None:
    assert may_pass(status)


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 422])
def test_what_stays_is_not(status: int) -> None:
    assert not may_pass(status)


def test_the_server_may_ask_for_a_wait_but_not_for_hours() -> None:
    assert delay_s({"Retry-After": "7"}, 0) == 7
    assert delay_s({"Retry-After": "86400"}, 0) == 60
    assert 0.5 <= delay_s({"Retry-After": "Wed, 21 Oct"}, 0) <= 1
    assert 15 <= delay_s(None, 50) <= 30


def test_the_delay_does_not_overflow_however_often_it_was_tried() -> None:
    assert 15 <= delay_s(None, 5000) <= 30
