"""Where the time went: it always adds up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.job.goodput import PIECES, Span, account
from steps.protocol.events import KINDS, Event
from steps.settings.config import Prices


def events(*told: tuple[float, str, int]) -> list[Event]:
    return [Event(kind, at, 1, step) for at, kind, step in told]  # type: ignore[arg-type]


CLEAN = events(
    (5, "started", 0), (8, "model_loaded", 0), (18, "first_step", 1), (18, "step", 1), (20, "step", 2), (22, "step", 3),
    (22, "checkpoint_begin", 3), (23, "checkpoint", 3), (25, "step", 4), (25, "validation_begin", 4), (29, "validation", 4),
    (30, "finished", 4),
)  # fmt: skip


def test_clean_run_is_cut_at_its_events() -> None:
    made = account([Span(1, 0.0, 32.0, None, 1.0, CLEAN, nodes=2)], Prices(node_hour=36.0))
    pieces = {name: made[f"{name}_s"] for name in PIECES if made[f"{name}_s"]}
    assert pieces == {
        "queue": 1, "startup": 4, "model_load": 3, "compile": 8, "productive": 8, "checkpoint": 1, "validation": 4, "exit": 3
    }  # fmt: skip
    assert made["total_s"] == 32
    assert made["goodput"] == 0.25
    assert made["node_hours"] == round(2 * 31 / 3600, 4)
    assert (made["cost"], made["currency"]) == (0.62, "USD")
    assert made["per_attempt"][0]["total_s"] == 32


def test_steps_done_again_are_lost_and_the_way_back_is_recovery() -> None:
    first = events(
        (1, "started", 0), (2, "model_loaded", 0), (4, "first_step", 1), (6, "step", 2), (8, "step", 3), (10, "step", 4)
    )
    second = events(
        (21, "started", 2), (22, "model_loaded", 2), (24, "first_step", 3), (26, "step", 4), (27, "finished", 4)
    )
    made = account([Span(1, 0, 15, 11.0, None, first), Span(2, 15, 28, None, None, second)])
    one, two = made["per_attempt"]
    assert one["lost_s"] == 5  # steps 3 and 4, and one second of the step that was cut off
    assert one["recovery_s"] == 4
    assert one["productive_s"] == 4
    assert two["recovery_s"] == 7  # startup and model load of the second attempt
    assert two["startup_s"] == 0
    assert made["total_s"] == 28
    assert "cost" not in made


def test_node_hours_follow_the_nodes_of_each_attempt() -> None:
    made = account([Span(1, 0, 3600, 3600.0, None, [], nodes=4), Span(2, 3600, 7200, None, None, [], nodes=2)])
    assert made["node_hours"] == 6


def test_attempt_that_never_trained_is_startup_and_recovery() -> None:
    made = account([Span(1, 0, 10, 7.0, None, [])])
    assert (made["startup_s"], made["recovery_s"], made["goodput"]) == (7, 3, 0)


def test_attempt_without_a_known_end_is_cut_at_the_supervisors() -> None:
    made = account([Span(1, 0, 10, None, None, events((1, "started", 0), (3, "step", 1)))])
    assert (made["productive_s"], made["exit_s"]) == (2, 7)


def test_time_when_nothing_ran_is_idle_and_costs_nothing() -> None:
    made = account([Span(1, 0, 10, 10, None, []), Span(2, 110, 120, 120, None, [], 100.0)])
    assert (made["idle_s"], made["total_s"]) == (100, 120)
    assert made["node_hours"] == round(20 / 3600, 4)


def test_nothing_adds_up_to_nothing() -> None:
    assert account([])["goodput"] == 0.0


def test_attempt_that_did_not_start_leaves_the_earlier_ones_steps_counted() -> None:
    first = events((1, "started", 0), (3, "step", 1), (5, "step", 2))
    spans = [
        Span(1, 0, 6, 6, None, first),
        Span(2, 6, 8, 8, None, []),
        Span(3, 8, 20, None, None, events((9, "started", 1))),
    ]
    made = account(spans)
    assert made["per_attempt"][0]["lost_s"] == 3
    assert made["total_s"] == 20


@given(
    times=st.lists(
        st.lists(st.tuples(st.floats(-50, 150), st.sampled_from(sorted(KINDS)), st.integers(0, 9))),
        min_size=1,
        max_size=4,
    ),
    failed_s=st.none() | st.floats(-10, 500),
    admitted_s=st.none() | st.floats(-10, 500),
)
def test_pieces_add_up_whatever_the_workers_clock_says(
    times: list[list[tuple[float, str, int]]], failed_s: float | None, admitted_s: float | None
) -> None:
    spans = [Span(n, 100.0 * n, 100.0 * (n + 1), failed_s, admitted_s, events(*told)) for n, told in enumerate(times)]
    made = account(spans)
    assert made["total_s"] == pytest.approx(100.0 * len(spans))
    assert all(made[f"{name}_s"] >= 0 for name in PIECES)
