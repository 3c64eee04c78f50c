"""What a person is told while an attempt is watched: each thing once, and when it is over."""

from __future__ import annotations

from typing import Any

import pytest

from steps.pytorchjob.onlooker import Onlooker


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def onlooker(told: list[str]) -> Onlooker:
    return Onlooker("j-a1", 600.0, 1800.0, told.append)


def pod(uid: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "j-a1-worker-0", "uid": uid, **metadata}}


def test_an_api_that_is_away_is_told_once_and_its_return_too(onlooker: Onlooker, told: list[str]) -> None:
    for silent_s in (0.0, 10.0, 16.0, 40.0, 0.0, 0.0):
        onlooker.hear(silent_s, "connection refused")
    assert told == [
        "the Kubernetes API has not answered for 16 s (connection refused): the workers go on, and it is waited for, "
        "600 s long (cluster.api_patience_s)",
        "the Kubernetes API answers again",
    ]


def test_an_operator_that_takes_no_notice_is_told_once(onlooker: Onlooker, told: list[str]) -> None:
    for age_s in (1.0, 20.0, 40.0):
        onlooker.look({"status": {}}, (), age_s)
    (words,) = told
    assert "has taken no notice of PyTorchJob j-a1 for 20 s" in words


@pytest.mark.parametrize(
    "job",
    [
        None,
        {"status": {"conditions": [{"type": "Created", "status": "True"}]}},
        {"spec": {"runPolicy": {"suspend": True}}, "status": {}},
    ],
    ids=["none", "noticed", "suspended"],
)
def test_a_job_that_was_noticed_or_waits_in_a_queue_is_not_told(
    onlooker: Onlooker, told: list[str], job: dict[str, Any] | None
) -> None:
    onlooker.look(job, (), 100.0)
    assert told == []


def test_a_pod_that_was_made_anew_is_told_for_each_time(onlooker: Onlooker, told: list[str]) -> None:
    for one in (pod("1"), pod("1"), pod("2", deletionTimestamp="now"), pod("2"), pod("2"), pod("3")):
        onlooker.look(None, (one,), 1.0)
    assert told == ["pod j-a1-worker-0 was deleted from outside, and made anew"] * 2


@pytest.mark.parametrize(
    ("pods", "hint"),
    [((pod("1"),), ""), ((), "FailedCreatePod: is forbidden: exceeded quota")],
    ids=["a pod", "an event"],
)
def test_an_operator_that_has_written_anything_is_not_said_to_be_away(
    onlooker: Onlooker, told: list[str], pods: tuple[dict[str, Any], ...], hint: str
) -> None:
    onlooker.look({"status": {}}, pods, 100.0, hint=hint)
    assert not any("Training Operator" in sentence for sentence in told)


def test_what_keeps_pods_from_coming_is_told_once_unless_it_ends_the_attempt(
    onlooker: Onlooker, told: list[str]
) -> None:
    final = ("FailedCreatePod: violates PodSecurity", "PyTorchJobFailedValidation: no container")
    for hint in (*final, *["FailedCreatePod: exceeded quota, used 1"] * 3):
        onlooker.look({"status": {}}, (), 6.0, hint=hint)
    assert told == [
        "pods of PyTorchJob j-a1 do not come (FailedCreatePod: exceeded quota, used 1); this may pass, and it is waited for, up "
        "to 1800 s from the start (deadlines.startup_s)"
    ]


def test_pods_that_have_come_are_not_said_to_be_missing_when_they_are_gone_again(
    onlooker: Onlooker, told: list[str]
) -> None:
    onlooker.look({"status": {}}, (pod("1"),), 6.0)
    onlooker.look({"status": {}}, (), 60.0, hint="ErrImagePull: Error pod j-a1-worker-0")
    assert told == []


def test_a_long_reason_keeps_its_end_which_says_why(onlooker: Onlooker, told: list[str]) -> None:
    state = {"waiting": {"reason": "ErrImagePull", "message": f"failed to resolve {'x' * 600}: not found"}}
    stuck = {**pod("1"), "status": {"phase": "Pending", "containerStatuses": [{"name": "pytorch", "state": state}]}}
    onlooker.look(None, (stuck,), 1.0)
    (words,) = told
    assert "x: not found); this may pass" in words
    assert len(words) < 600


def test_what_keeps_a_pod_from_starting_is_told_once_with_how_long_it_is_waited_for(
    onlooker: Onlooker, told: list[str]
) -> None:
    def stuck(reason: str, message: str) -> dict[str, Any]:
        waiting = {"name": "pytorch", "state": {"waiting": {"reason": reason, "message": message}}}
        return {**pod("1"), "status": {"phase": "Pending", "containerStatuses": [waiting]}}

    secret = stuck("CreateContainerConfigError", 'secret "x" not found')
    for one in (secret, secret, stuck("ErrImagePull", "no such host"), stuck("ImagePullBackOff", "no such host")):
        onlooker.look(None, (one,), 1.0)
    assert told == [
        'pod j-a1-worker-0 does not start (CreateContainerConfigError: secret "x" not found); this may pass, and it is waited '
        "for, up to 1800 s from the start (deadlines.startup_s)",
        "pod j-a1-worker-0 does not start (ErrImagePull: no such host); this may pass, and it is waited for, up to 1800 s from "
        "the start (deadlines.startup_s)",
    ]
