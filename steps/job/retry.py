"""What to do after a failed attempt: `decide` answers with a `Resubmit` or a `GiveUp`. Pure: no clock, no sleep, no log.

The rules: a permanent failure stops at once (a start that failed is none if the same workers have started before); a preemption
is free, unless one follows another without progress; out of memory is tried once more, and stops when it comes at the same step
again; anything else goes on from the last complete checkpoint while there is progress. Attempts in a row without a new complete
checkpoint, attempts in all, and the total time have limits.
A node that failed twice is avoided; one with a broken accelerator is left out, at once, as long as others have room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from steps.job.history import Attempt, History
from steps.protocol.failure_class import FailureClass
from steps.settings.config import Retry

NODE_FAILURES = 2
"""A node that failed this often is avoided."""
FADES_AFTER = 3
"""So many later attempts that came further, without a failure of the node, make up for one of its failures."""
LONGEST_GROWTH = 64
"""Power of `delay_factor`, at most: beyond it numbers overflow, and `max_delay_s` was reached long ago."""


@dataclass(frozen=True, slots=True)
class Resubmit:
    """Start another attempt."""

    delay_s: float
    reason: str
    resume_from: int
    """Step of the newest complete checkpoint; 0: from the start."""
    avoid_nodes: tuple[str, ...] = ()
    """Used where no other has room."""
    exclude_nodes: tuple[str, ...] = ()
    """Not used at all."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop."""

    kind: Literal["permanent", "exhausted", "timeout", "cancelled", "budget"]
    reason: str


def decide(history: History, policy: Retry, *, spent_s: float, total_s: float, nodes: int = 0) -> Resubmit | GiveUp:
    """What follows the history's last attempt, which has failed.

    `spent_s`: seconds used so far of the total deadline `total_s`. `nodes`: of the next attempt, if there is one.
    """
    last = history.attempts[-1]
    failure_class = FailureClass(last.failure_class)
    meaning = failure_class.meaning
    if meaning.is_permanent and not (last.is_at_start and has_trained_alike(history)):
        return GiveUp("permanent", f"a failure of class {failure_class} would only come again")
    if meaning.is_permanent_at_same_step and _same_step_before(history):
        return GiveUp("permanent", f"{failure_class.replace('_', ' ')} twice {_at(last.step)}: {meaning.advice}")
    streak = attempts_without_progress(history)
    if streak >= policy.max_without_progress:
        return GiveUp("exhausted", f"{streak} attempts in a row brought no new complete checkpoint")
    used = sum(not item.free for item in count(history))
    if used >= policy.max_attempts:
        return GiveUp("exhausted", f"all {policy.max_attempts} attempts (retry.max_attempts) are used up")
    delay_s = _delay_s(last, streak, policy)
    excluded = excluded_nodes(history, nodes)
    return _look_ahead(history, delay_s, spent_s, total_s) or Resubmit(
        delay_s, _reason(last, streak), resume_step(history), avoided_nodes(history, excluded), excluded
    )


def has_trained_alike(history: History) -> bool:
    """An attempt with the last one's image and spec trained: what keeps such workers from starting now may pass."""
    last = history.attempts[-1]
    same = (item for item in history.attempts if (item.image, item.spec_digest) == (last.image, last.spec_digest))
    return any(item.step is not None for item in same)


def _look_ahead(history: History, delay_s: float, spent_s: float, total_s: float) -> GiveUp | None:
    """An attempt that cannot reach its first step before the total deadline is not begun."""
    ready_s = min((attempt.ready_s for attempt in history.attempts if attempt.ready_s is not None), default=0.0)
    if spent_s + delay_s + ready_s < total_s:
        return None
    needed = f"another attempt needs {delay_s + ready_s:.0f} s to its first step"
    return GiveUp("timeout", f"{spent_s:.0f} s of {total_s:.0f} s (deadlines.total_s) are used, and {needed}")


def fewer_nodes(choices: Sequence[int], nodes: int, started: int) -> int:
    """With how many nodes to go on after only `started` of `nodes` came up in time: the largest allowed number that did.

    None of `choices` that small: the smallest. `nodes` where there is no smaller choice, and where all came up: then it was not
    for want of a node.
    """
    if started >= nodes:
        return nodes
    smaller = [choice for choice in choices if choice < nodes]
    return max((choice for choice in smaller if choice <= started), default=min(smaller, default=nodes))


def resume_step(history: History) -> int:
    """The newest complete checkpoint that any attempt left."""
    return max((attempt.complete_step for attempt in history.attempts), default=0)


def excluded_nodes(history: History, nodes: int) -> tuple[str, ...]:
    """Nodes that the next attempt, of `nodes` nodes, must not use: those with a broken accelerator.

    As long as others have room: where an attempt of as many nodes has waited for others in vain, they are only avoided.
    """
    return tuple(
        sorted(
            {
                blamed.node
                for blamed, later in _blamed(history)
                if blamed.failure
                and blamed.failure.meaning.excludes_node
                and not any(item.lacks_room and item.nodes == nodes and blamed.node in item.excluded for item in later)
            }
        )
    )


def avoided_nodes(history: History, excluded: Collection[str] = ()) -> tuple[str, ...]:
    """Nodes that the next attempt prefers not to use: those on which attempts failed first, twice or more.

    One with a broken accelerator at once, if it is not `excluded`. Where nothing else has room, they are used.
    """
    times: Counter[str] = Counter()
    for blamed, _ in _blamed(history):
        times[blamed.node] += NODE_FAILURES if blamed.failure and blamed.failure.meaning.excludes_node else 1
    return tuple(sorted(node for node, count in times.items() if count >= NODE_FAILURES and node not in excluded))


def _blamed(history: History) -> Iterator[tuple[Attempt, list[Attempt]]]:
    """Attempts that a node is blamed for, each with those after it. Blame fades with progress, and when a person resumes."""
    counted = tuple(count(history))
    for place, item in enumerate(counted):
        node, failure = item.attempt.node, item.attempt.failure
        later = counted[place + 1 :]
        made_up = sum(after.advanced and after.attempt.node != node for after in later)
        if node and failure and failure.meaning.blames_node and made_up < FADES_AFTER:
            yield item.attempt, [after.attempt for after in later]


@dataclass(frozen=True, slots=True)
class Counted:
    """An attempt, as the limits count it."""

    attempt: Attempt
    advanced: bool
    """It left a newer complete checkpoint than all before it."""
    free: bool
    """It uses up no retry: its failure's class does not, and it is not the second such in a row without progress; or it only
    found that no other node has room than those that it left out."""


def count(history: History) -> Iterator[Counted]:
    """The attempts since the retry count was last reset."""
    best = max((attempt.complete_step for attempt in history.attempts[: history.not_counted]), default=0)
    was_idle = False
    for attempt in history.counted:
        advanced = attempt.complete_step > best
        is_spared = attempt.failure is not None and not attempt.failure.meaning.uses_up_retry
        is_idle = is_spared and not advanced
        is_search = attempt.lacks_room and bool(attempt.excluded)
        yield Counted(attempt, advanced, free=is_search or (is_spared and not (is_idle and was_idle)))
        best, was_idle = max(best, attempt.complete_step), is_idle


def attempts_without_progress(history: History) -> int:
    """Attempts at the end of the history that brought no new complete checkpoint; free ones are not counted."""
    streak = 0
    for item in count(history):
        streak = 0 if item.advanced else streak + (not item.free)
    return streak


def _same_step_before(history: History) -> bool:
    last = history.attempts[-1]
    return any(item.failure is last.failure and item.step == last.step for item in history.counted[:-1])


def _delay_s(last: Attempt, streak: int, policy: Retry) -> float:
    if last.failure and not last.failure.meaning.uses_up_retry:
        return 0.0
    growth: float = policy.delay_factor ** min(max(streak - 1, 0), LONGEST_GROWTH)
    return min(policy.delay_s * growth, policy.max_delay_s)


def _reason(last: Attempt, streak: int) -> str:
    if last.failure and not last.failure.meaning.uses_up_retry:
        return "it was stopped from outside"
    if streak == 0:
        return f"{last.failure_class}, and it had come further than the attempts before"
    return f"{last.failure_class}, {streak} without a new complete checkpoint"


def _at(step: int | None) -> str:
    return f"after step {step}" if step else "before the first step"
