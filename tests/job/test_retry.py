"""What to do: a table, and properties that hold for any story."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.job.history import Attempt, History, Verdict
from steps.job.retry import GiveUp, Resubmit, attempts_without_progress, avoided_nodes, decide
from steps.protocol.failure_class import FailureClass
from steps.settings.config import Retry

POLICY = Retry(max_attempts=6, max_without_progress=3, delay_s=5, delay_factor=2, max_delay_s=15)


def story(*told: tuple[str, int], **last: object) -> History:
    """Attempts as (class, newest complete step at the end)."""
    attempts = [
        Attempt(number, 0.0, finished_s=1.0, failure_class=kind, complete_step=step, step=step or None)
        for number, (kind, step) in enumerate(told, 1)
    ]
    attempts[-1] = replace(attempts[-1], **last)  # type: ignore[arg-type]
    return History("play", tuple(attempts))


def answer(history: History, spent_s: float = 0.0, total_s: float = 1e9) -> Resubmit | GiveUp:
    return decide(history, POLICY, spent_s=spent_s, total_s=total_s)


@pytest.mark.parametrize("kind", ["user", "config", "image"])
def test_permanent_classes_stop_at_once(kind: str) -> None:
    decision = answer(story((kind, 50)))
    assert isinstance(decision, GiveUp)
    assert decision.kind == "permanent"


@pytest.mark.parametrize(
    ("told", "delay_s", "resume_from"),
    [
        pytest.param([("network", 0)], 5, 0, id="first failure, no checkpoint"),
        pytest.param([("network", 0), ("network", 0)], 10, 0, id="second without progress waits longer"),
        pytest.param([("network", 10)], 5, 10, id="with progress"),
        pytest.param([("network", 0), ("network", 0), ("hang", 10)], 5, 10, id="progress resets the delay"),
        pytest.param([("preempted", 10)], 0, 10, id="preempted"),
        pytest.param([("preempted", 0)], 0, 0, id="preempted without progress, once"),
        pytest.param(
            [("preempted", 0), ("preempted", 0), ("preempted", 0)], 0, 0, id="preempted three times: two count"
        ),
        pytest.param([("out_of_memory", 10)], 5, 10, id="out of memory once"),
        pytest.param([("out_of_memory", 10), ("out_of_memory", 20)], 5, 20, id="out of memory at another step"),
        pytest.param([("network", 30), ("network", 10)], 5, 30, id="an earlier attempt's checkpoint is not forgotten"),
        pytest.param([("preempted", n) for n in range(1, 30)], 0, 29, id="preempted again and again, with progress"),
    ],
)
def test_attempt_is_followed_by_another(told: list[tuple[str, int]], delay_s: float, resume_from: int) -> None:
    decision = answer(story(*told))
    assert isinstance(decision, Resubmit)
    assert (decision.delay_s, decision.resume_from) == (delay_s, resume_from)
    assert decision.reason


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        pytest.param([("network", 0)] * 3, "exhausted", "3 attempts in a row", id="three without progress"),
        pytest.param([("preempted", 0)] * 4, "exhausted", "3 attempts in a row", id="preempted four times in place"),
        pytest.param([("hang", n) for n in range(1, 7)], "exhausted", "all 6 attempts", id="all attempts used"),
        pytest.param(
            [("out_of_memory", 10), ("hang", 10), ("out_of_memory", 10)],
            "permanent",
            "--micro-batch",
            id="memory, same step",
        ),
        pytest.param(
            [("out_of_memory", 0), ("out_of_memory", 0)],
            "permanent",
            "before the first step",
            id="memory at once, twice",
        ),
    ],
)
def test_attempt_is_the_last(told: list[tuple[str, int]], kind: str, words: str) -> None:
    decision = answer(story(*told))
    assert isinstance(decision, GiveUp)
    assert decision.kind == kind
    assert words in decision.reason


def test_attempt_that_cannot_reach_its_first_step_in_time_is_not_begun() -> None:
    history = story(("network", 10), ready_s=60.0)
    assert isinstance(answer(history, spent_s=0, total_s=66), Resubmit)
    decision = answer(history, spent_s=1, total_s=66)
    assert isinstance(decision, GiveUp)
    assert decision.kind == "timeout"
    assert "another attempt needs 65 s" in decision.reason


def test_attempts_before_a_persons_resume_do_not_count() -> None:
    before = story(("network", 0), ("network", 0), ("network", 0)).reset_retry_count()
    history = replace(before, attempts=(*before.attempts, Attempt(4, 0.0, finished_s=1.0, failure_class="network")))
    assert attempts_without_progress(history) == 1
    assert isinstance(answer(history), Resubmit)


def test_progress_is_measured_against_attempts_before_a_persons_resume() -> None:
    before = story(("network", 10)).reset_retry_count()
    history = replace(before, attempts=(*before.attempts, Attempt(2, 0.0, failure_class="network", complete_step=10)))
    assert attempts_without_progress(history) == 1


@pytest.mark.parametrize(
    ("earlier", "is_final"),
    [
        ({"step": 7, "image": "i:1", "spec_digest": "s"}, False),
        ({"step": 7, "image": "i:2", "spec_digest": "s"}, True),
        ({"step": 7, "image": "i:1", "spec_digest": "t"}, True),
        ({"step": None, "image": "i:1", "spec_digest": "s"}, True),
    ],
    ids=["it trained before", "with another image", "with another spec", "it never trained"],
)
@pytest.mark.parametrize("kind", ["image", "config"])
def test_a_start_that_fails_is_final_unless_the_same_workers_trained_before(
    kind: str, earlier: dict[str, Any], is_final: bool
) -> None:
    late = Attempt(2, 1.0, failure_class=kind, image="i:1", spec_digest="s", is_at_start=True)
    history = History("x", (Attempt(1, 0.0, failure_class="node", **earlier), late))
    assert isinstance(decide(history, POLICY, spent_s=0, total_s=1e9), GiveUp) == is_final
    at_once = replace(history, attempts=(history.attempts[0], replace(late, is_at_start=False)))
    assert isinstance(decide(at_once, POLICY, spent_s=0, total_s=1e9), GiveUp)


def test_a_delay_does_not_overflow_however_many_attempts_failed() -> None:
    policy = Retry(max_attempts=3000, max_without_progress=3000, delay_s=1)
    attempts = tuple(Attempt(number, 0.0, failure_class="network") for number in range(1, 2002))
    decision = decide(History("x", attempts), policy, spent_s=0, total_s=1e9)
    assert isinstance(decision, Resubmit)
    assert decision.delay_s == policy.max_delay_s


def test_node_that_failed_twice_is_avoided() -> None:
    attempts = [
        Attempt(1, 0.0, failure_class="node", node="a", complete_step=1),
        Attempt(2, 0.0, failure_class="user", node="b", complete_step=2),
        Attempt(3, 0.0, failure_class="hang", node="a", complete_step=3),
        Attempt(4, 0.0, failure_class="network", node="b", complete_step=4),
    ]
    assert avoided_nodes(History("x", tuple(attempts))) == ("a",)
    assert avoided_nodes(History("x", tuple(attempts), not_counted=1)) == ()


@pytest.mark.parametrize(
    ("told", "avoided"),
    [
        pytest.param([("accelerator", "a", 0)], ("a",), id="a broken accelerator, at once"),
        pytest.param([("accelerator", "", 0)], (), id="no node is known"),
        pytest.param([("accelerator", "b", 0), ("accelerator", "a", 0)], ("a", "b"), id="two of them"),
        pytest.param(
            [("accelerator", "a", 0), *[("node", "b", n) for n in (1, 2)]], ("a", "b"), id="others came further"
        ),
        pytest.param([("accelerator", "a", 0), *[("storage", "", n) for n in (1, 2, 3)]], (), id="much progress since"),
        pytest.param(
            [("accelerator", "a", 0), *[("storage", "", 0) for _ in range(9)]], ("a",), id="no progress since"
        ),
        pytest.param(
            [("node", "a", n) for n in (1, 2, 3, 4, 5)], ("a",), id="it comes further, and always fails there"
        ),
        pytest.param(
            [("node", "a", 1), *[("storage", "", n) for n in (2, 3, 4)], ("node", "a", 5)],
            (),
            id="one of two has faded",
        ),
    ],
)
def test_blame_of_a_node_fades_with_progress(told: list[tuple[str, str, int]], avoided: tuple[str, ...]) -> None:
    attempts = tuple(
        Attempt(number, 0.0, finished_s=1.0, failure_class=kind, node=node, complete_step=complete)
        for number, (kind, node, complete) in enumerate(told, 1)
    )
    assert avoided_nodes(History("x", attempts)) == avoided
    decision = decide(History("x", attempts), POLICY, spent_s=0, total_s=1e9)
    broken = {node for kind, node, _ in told if kind == "accelerator"}
    if isinstance(decision, Resubmit):
        assert decision.exclude_nodes == tuple(node for node in avoided if node in broken)
        assert decision.avoid_nodes == tuple(node for node in avoided if node not in broken)


def test_history_survives_json() -> None:
    history = replace(story(("network", 3)), verdict=Verdict("permanent", "user", 1, "words"), result={"step": 3})
    assert History.from_dict(history.to_dict()) == history
    newer = history.to_dict()
    newer["attempts"][0]["of a later version"] = 1
    assert History.from_dict(newer) == history
    assert History("x").last is None


CLASSES = st.sampled_from([kind.value for kind in FailureClass])


@given(
    failures=st.lists(st.tuples(CLASSES, st.integers(0, 2), st.none() | st.integers(0, 3)), min_size=1, max_size=400),
    attempts=st.integers(1, 12),
    stalled=st.integers(1, 5),
    total_s=st.floats(1, 1e5),
)
def test_any_story_ends_within_its_limits(
    failures: list[tuple[str, int, int | None]], attempts: int, stalled: int, total_s: float
) -> None:
    """200 steps to do, each attempt advances by at most 2: however it fails, it ends, and never goes back."""
    policy = Retry(max_attempts=attempts, max_without_progress=stalled, delay_s=1)
    history, complete, spent_s, highest = History("play"), 0, 0.0, 0
    for number in range(1, 1000):
        kind, gain, step = failures[number % len(failures)]
        complete = min(200, complete + gain)
        attempt = Attempt(number, spent_s, failure_class=kind, complete_step=complete, step=step)
        history = replace(history, attempts=(*history.attempts, attempt))
        decision = decide(history, policy, spent_s=spent_s, total_s=total_s)
        if isinstance(decision, GiveUp):
            break
        assert decision.resume_from >= highest
        assert 0 <= decision.delay_s <= policy.max_delay_s
        assert spent_s + decision.delay_s < total_s
        highest = decision.resume_from
        spent_s += decision.delay_s
        counted = [item for item in history.attempts if item.failure_class != "preempted"]
        assert len(counted) < attempts
        assert attempts_without_progress(history) < stalled
    else:
        pytest.fail("it never ended")
