"""What follows from watching a job for a while: as a table of looks, without a cluster, a clock or a thread."""

from __future__ import annotations

from typing import Any

from steps.job.snapshot import JobSnapshot, Phase, Reason
from steps.pytorchjob.watching import Ask, Look, Question, Seen, advance, judge
from tests.pytorchjob.test_snapshot import disrupted, job, pod, waiting


def look(now_s: float, *pods: dict[str, Any], found: dict[str, Any] | None = None, nodes: int = 2) -> Look:
    return Look(now_s, found, pods, nodes)


def leaving(index: int, **more: Any) -> dict[str, Any]:
    found = pod(index, deleting=True, **more)
    found["metadata"] |= {"uid": f"uid-{index}", "deletionGracePeriodSeconds": 30}
    return found


def asked(seen: Seen, *looks: Look) -> list[tuple[float, Ask]]:
    """When each question was asked."""
    found = []
    for item in looks:
        seen, questions = advance(seen, item)
        found += [(item.now_s, question.ask) for question in questions]
    return found


def test_events_are_asked_for_soon_at_first_and_seldom_later() -> None:
    waiting = [look(float(now_s), found=job("Created")) for now_s in range(121)]
    times = [now_s for now_s, ask in asked(Seen(0.0), *waiting) if ask is Ask.EVENTS]
    assert times == [*(2.0 + 5 * place for place in range(12)), 87.0, 117.0]


def test_events_that_have_spoken_are_asked_for_seldom() -> None:
    seen = Seen(0.0).with_warnings(({"type": "Warning", "reason": "FailedCreatePod", "message": "exceeded quota"},))
    waiting = [look(float(now_s), found=job("Created")) for now_s in range(61)]
    assert [now_s for now_s, _ in asked(seen, *waiting)] == [2.0, 32.0]


def test_nobody_is_asked_while_all_pods_are_there_or_the_job_waits_in_a_queue() -> None:
    suspended = {**job("Created"), "spec": {"runPolicy": {"suspend": True}}}
    looks = [look(10.0, pod(0), pod(1), found=job("Running")), look(60.0, found=suspended), look(90.0)]
    assert asked(Seen(0.0), *looks) == []


def test_one_node_of_several_is_asked_at_a_time_and_a_dead_one_no_more() -> None:
    gone = disrupted("DeletionByTaintManager")
    pods = (leaving(0, conditions=(gone,)), leaving(1, conditions=(gone,)))
    seen, (first,) = advance(Seen(0.0), look(10.0, *pods, found=job("Running")))
    assert (first.ask, first.uid, first.is_given_up) == (Ask.NODE, "uid-0", True)
    assert advance(seen, look(11.0, *pods, found=job("Running")))[1] == ()
    seen = seen.with_node(first, False)
    assert seen.dead == {"uid-0"}
    _, (second,) = advance(seen, look(12.5, *pods, found=job("Running")))
    assert second.uid == "uid-1"


def test_a_node_that_may_not_be_read_is_dead_only_if_the_cluster_gave_its_pod_up() -> None:
    kept, given_up = Question(Ask.NODE, "n", "a"), Question(Ask.NODE, "n", "b", is_given_up=True)
    seen = Seen(0.0).with_node(kept, None).with_node(given_up, None).with_node(given_up, True)
    assert seen.dead == {"b"}


def test_a_job_that_was_seen_and_is_gone_was_cancelled() -> None:
    seen, _ = advance(Seen(0.0), look(1.0, found=job("Running")))
    found = judge(seen, look(2.0), JobSnapshot(Phase.GONE, remaining=1), was_begun=True)
    assert (found.phase, found.reason, found.remaining) == (Phase.GONE, Reason.CANCELLED, 1)
    assert judge(Seen(0.0), look(2.0), JobSnapshot(Phase.GONE), was_begun=True).reason is Reason.PREEMPTED
    assert judge(Seen(0.0), look(2.0), JobSnapshot(Phase.GONE), was_begun=False) == JobSnapshot(Phase.GONE)


def test_a_job_that_is_deleted_in_the_foreground_was_cancelled_though_its_pods_end_first() -> None:
    going = job("Running")
    going["metadata"]["deletionTimestamp"] = "2026-11-28T18:21:20Z"
    ended = JobSnapshot(Phase.FAILED, (), Reason.NONE, "1 Worker replica(s) failed", 3)
    watched, _ = advance(Seen(0.0), look(1.0, found=job("Running")))
    watched, _ = advance(watched, look(2.0, found=going))
    assert judge(watched, look(2.0, found=going), ended, was_begun=True).reason is Reason.CANCELLED
    running = JobSnapshot(Phase.RUNNING, remaining=3)
    assert judge(watched, look(2.0, found=going), running, was_begun=True) == running, "its workers save"
    late, _ = advance(Seen(0.0), look(2.0, found=going))
    assert judge(late, look(2.0, found=going), ended, was_begun=True) == ended, "nobody knows who asked for it"


def test_advance_changes_nothing_that_it_was_given() -> None:
    seen = Seen(0.0)
    advance(seen, look(5.0, leaving(0), found=job("Running")))
    assert seen == Seen(0.0)


BARE = waiting("ImagePullBackOff", 'Back-off pulling image "x"')


def test_an_image_that_is_not_pulled_keeps_the_last_real_reason() -> None:
    said = pod(0, "Pending", state=waiting("ErrImagePull", "manifest unknown"))
    seen, _ = advance(Seen(0.0), look(10.0, said, found=job("Created"), nodes=1))
    seen, questions = advance(seen, look(20.0, pod(0, "Pending", state=BARE), found=job("Created"), nodes=1))
    assert (seen.pulls, questions) == ({"p0": "manifest unknown"}, ())


def test_a_pod_that_only_says_back_off_is_asked_about_by_its_events_until_they_tell() -> None:
    bare = pod(0, "Pending", state=BARE)
    looks = [look(float(now_s), bare, found=job("Created"), nodes=1) for now_s in range(61)]
    assert asked(Seen(0.0), *looks) == [(0.0, Ask.PULL), (30.0, Ask.PULL), (60.0, Ask.PULL)]
    question = Question(Ask.PULL, "j-worker-0", "p0")
    events = (
        {"reason": "Failed", "message": 'Failed to pull image "x": no such host'},
        {"reason": "Failed", "message": "Error: ImagePullBackOff"},
        {"reason": "BackOff", "message": 'Back-off pulling image "x"'},
    )
    assert Seen(0.0).with_pull(question, events[1:]).pulls == {}
    seen = Seen(0.0).with_pull(question, events)
    assert seen.pulls == {"p0": 'Failed to pull image "x": no such host'}
    assert asked(seen, *looks) == []
