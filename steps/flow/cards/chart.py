"""Series of numbers → a chart's geometry: axes from the data, ticks, lines. Pure; the templates draw it.

Places are in thousandths of the plot, from its upper left corner, so that a page stretches the lines and not the letters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SIZE = 1000
TICKS = 5
MAX_POINTS = 400
"""Points drawn per line; longer ones are thinned, the last point always shown."""
DOTS_UP_TO = 40
"""Points of a line that are shown as dots as well."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its points as (step, value), how it is called and which class of the style sheet draws it."""

    name: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in thousandths, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step: a vertical line or a sign on the axis."""

    step: float
    style: str
    text: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A series as an SVG path, and its dots as another."""

    name: str
    style: str
    path: str
    dots: str


@dataclass(frozen=True, slots=True)
class Chart:
    """All that a template needs to draw."""

    title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    marks: list[Mark]
    last: str
    """The newest value of the first series, in words."""


def chart(title: str, series: Sequence[Series], *, steps: int, marks: Iterable[Mark] = ()) -> Chart | None:
    """A chart over the steps 0..`steps`; None where no value is a number.

    The x axis is that of the whole run from the beginning; the y axis is the data's range, with some air.
    """
    known = [replace_points(one, finite(one.points)) for one in series]
    values = [value for one in known for _, value in one.points]
    if not values:
        return None
    last_step = max([float(max(steps, 1)), *(step for one in known for step, _ in one.points)])
    low, high, y_values = axis(min(values), max(values))
    lines = [_line(one, last_step, low, high) for one in known if one.points]
    newest = next(one.points[-1][1] for one in known if one.points)
    return Chart(
        title,
        [Tick(_share(value, 0, last_step), f"{value:,.0f}") for value in whole_ticks(last_step)],
        [
            Tick(SIZE - _share(value, low, high), text)
            for value, text in zip(y_values, tick_texts(y_values), strict=True)
        ],
        lines,
        [Mark(one.step, one.style, one.text, _share(one.step, 0, last_step)) for one in marks if one.step <= last_step],
        figure(newest),
    )


def replace_points(series: Series, points: Sequence[Point]) -> Series:
    """The series with other points."""
    return Series(series.name, series.style, points)


def finite(points: Iterable[Point]) -> list[Point]:
    """The points that can be drawn: neither NaN nor infinity, nor beyond what can be subtracted."""
    return [(step, value) for step, value in points if math.isfinite(value) and abs(value) < 1e300]


def axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """The limits of an axis that holds both values, and its ticks at round numbers."""
    if high - low <= abs(high) * 1e-9:  # one value: some room on both sides
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    pad = (high - low) * 0.05
    bottom = max(0.0, low - pad) if low >= 0 else low - pad
    top = high + pad
    step = nice_step((top - bottom) / TICKS)
    first = math.ceil(bottom / step)
    ticks = [number * step for number in range(first, first + TICKS * 3) if number * step <= top]
    return bottom, top, ticks


def nice_step(rough: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 1e-300 else 0.0
    if not power:
        return 1.0
    return next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough * (1 - 1e-9)), 10 * power)


def whole_ticks(last: float) -> list[float]:
    """Whole steps from 0, at round numbers, and never more than seven."""
    step = max(1, math.ceil(nice_step(last / TICKS)))
    return [float(value) for value in range(0, math.floor(last) + 1, step)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """With as many digits as tell one tick from the next; very small and very large ones by powers of ten."""
    largest = max((abs(value) for value in values), default=0.0)
    if not 1e-3 <= largest < 1e6:
        return [f"{value:.3g}" if value else "0" for value in values]
    gaps = [after - before for before, after in pairwise(values)]
    digits = next((digits for digits in range(9) if all(math.isclose(gap, round(gap, digits)) for gap in gaps)), 9)
    return [f"{value:,.{digits}f}" if value else "0" for value in values]


def figure(value: float) -> str:
    """A value in words: four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def smooth(points: Sequence[Point], *, share: float = 0.025) -> list[Point]:
    """An exponential moving average over about `share` of the points, unbiased at its beginning."""
    keep = 1 - 1 / max(2.0, len(points) * share)
    total, weight, made = 0.0, 0.0, []
    for step, value in points:
        total, weight = keep * total + value, keep * weight + 1
        made.append((step, total / weight))
    return made


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points plus the last one, evenly spaced."""
    stride = -(-len(points) // most) if len(points) > most else 1
    return [*points[::stride], *(points[-1:] if (len(points) - 1) % stride else ())]


def _line(series: Series, last_step: float, low: float, high: float) -> Line:
    shown = thin(series.points)
    places = [f"{_share(step, 0, last_step):.1f} {SIZE - _share(value, low, high):.1f}" for step, value in shown]
    dots = "".join(f"M{place}h0" for place in places) if len(places) <= DOTS_UP_TO else ""
    return Line(series.name, series.style, "M" + "L".join(places), dots)


def _share(value: float, low: float, high: float) -> float:
    return SIZE * (value - low) / (high - low)
