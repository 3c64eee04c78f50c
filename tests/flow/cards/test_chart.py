"""Charts from series: axes that hold the data, whole steps, bounded size."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.flow.cards.chart import (
    MAX_POINTS,
    SIZE,
    Mark,
    Series,
    axis,
    chart,
    finite,
    nice_step,
    smooth,
    thin,
    tick_texts,
    whole_ticks,
)


def texts(low: float, high: float) -> list[str]:
    return tick_texts(axis(low, high)[2])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.03, 0.63, ["0", "0.2", "0.4", "0.6"]),
        (2.31, 2.39, ["2.32", "2.34", "2.36", "2.38"]),
        (0.0, 0.001, ["0", "0.00025", "0.00050", "0.00075", "0.00100"]),
        (1e-5, 2e-4, ["5e-05", "0.0001", "0.00015", "0.0002"]),
        (340, 480, ["350", "400", "450"]),
        (1e6, 5e6, ["1e+06", "2e+06", "3e+06", "4e+06", "5e+06"]),
        (-1.0, 1.0, ["-1.0", "-0.5", "0", "0.5", "1.0"]),
    ],
)
def test_the_value_axis_is_of_the_datas_range_with_round_ticks(low: float, high: float, expected: list[str]) -> None:
    assert texts(low, high) == expected


@settings(deadline=None)
@given(st.floats(-1e290, 1e290), st.floats(-1e290, 1e290))
def test_an_axis_holds_its_values(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    bottom, top, ticks = axis(low, high)
    assert bottom <= low <= high <= top
    assert bottom < top
    assert len(ticks) <= 15
    assert len(set(tick_texts(ticks))) >= len(ticks) - 1 or high - low < 1e-6 * abs(high)


@pytest.mark.parametrize(
    ("last", "expected"),
    [(1, [0, 1]), (3, [0, 1, 2, 3]), (30, [0, 10, 20, 30]), (200, [0, 50, 100, 150, 200]), (7, [0, 2, 4, 6])],
)
def test_steps_are_whole_numbers(last: int, expected: list[float]) -> None:
    assert whole_ticks(last) == expected


@given(st.integers(1, 10**9))
def test_there_are_few_step_ticks(last: int) -> None:
    assert 2 <= len(whole_ticks(last)) <= 7


def test_the_step_axis_is_that_of_the_whole_run_from_the_beginning() -> None:
    made = chart("loss", [Series("a", "raw", [(1.0, 3.0), (10.0, 2.0)])], steps=100)
    assert made is not None
    assert [tick.text for tick in made.x_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [tick.at for tick in made.x_ticks] == [0, 200, 400, 600, 800, 1000]
    assert made.lines[0].path.startswith("M10.0 ")
    assert "L100.0 " in made.lines[0].path


def test_a_chart_without_a_number_is_none() -> None:
    assert chart("loss", [Series("a", "raw", [])], steps=10) is None
    assert chart("loss", [Series("a", "raw", [(1.0, math.nan), (2.0, math.inf)])], steps=10) is None


def test_marks_stand_at_their_steps_and_those_beyond_the_axis_are_left_out() -> None:
    marks = [Mark(5, "checkpoint", "c"), Mark(50, "checkpoint", "far")]
    made = chart("loss", [Series("a", "raw", [(1.0, 1.0)])], steps=10, marks=marks)
    assert made is not None
    assert [(mark.text, mark.at) for mark in made.marks] == [("c", 500)]


points = st.lists(st.tuples(st.floats(0, 1e9), st.floats(allow_nan=True)), max_size=50)


@settings(deadline=None)
@given(points, points, st.integers(0, 10**9))
def test_any_numbers_make_a_chart_inside_its_area(
    raw: list[tuple[float, float]], more: list[tuple[float, float]], steps: int
) -> None:
    made = chart("loss", [Series("a", "raw", raw), Series("b", "validation", more)], steps=steps)
    if made is None:
        assert not finite([*raw, *more])
        return
    for line in made.lines:
        places = [float(number) for pair in line.path[1:].split("L") for number in pair.split()]
        assert all(-0.1 <= place <= SIZE + 0.1 for place in places)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 500))
def test_thinning_keeps_the_first_and_the_last_point_and_the_order(count: int, most: int) -> None:
    given_points = [(float(step), 0.0) for step in range(count)]
    shown = thin(given_points, most)
    assert len(shown) <= most + 1
    assert shown == sorted(set(shown))
    assert (shown[:1], shown[-1:]) == (given_points[:1], given_points[-1:])
    assert count > most or shown == given_points


def test_a_long_run_is_drawn_with_a_bounded_number_of_points() -> None:
    made = chart("loss", [Series("a", "raw", [(float(step), 1.0) for step in range(100_000)])], steps=100_000)
    assert made is not None
    assert made.lines[0].path.count("L") <= MAX_POINTS


def test_smoothing_keeps_a_constant_and_quiets_a_saw() -> None:
    flat = [(float(step), 2.0) for step in range(50)]
    assert [value for _, value in smooth(flat)] == pytest.approx([2.0] * 50)
    saw = [(float(step), float(step % 2)) for step in range(400)]
    assert all(0.3 < value < 0.7 for _, value in smooth(saw)[50:])


@given(st.floats(1e-290, 1e290))
def test_a_nice_step_is_no_smaller_than_asked_and_not_much_larger(rough: float) -> None:
    assert rough * (1 - 1e-8) <= nice_step(rough) <= rough * 2.6
