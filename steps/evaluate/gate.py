"""How sure the difference between both models is, and the gate that follows from it. Pure.

Called by `stage`. Both models answer the same questions, so what counts is each question's difference. Paired bootstrap: Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
NORMAL = 1.96
"""Standard deviations of the normal distribution that hold LEVEL of it."""
SURE = 0.999
"""Level at which fewer samples than there are suffice. It is as strict as Haybittle's and Peto's rule for looking early, so that
the last look keeps its 95 %."""
RESAMPLES = 10_000
LEAST_INFORMATIVE = 6
"""Fewer pairs never tell at 95 %, even if all of them point one way: a sign test of five gives 6 % (2 · 0.5⁵)."""
DIFFERING = 1 / 3
"""Share of the answers that two models answer differently, where nothing is known of them."""
HAIR = 1e-9
"""Sums of thirds and tenths."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The tuned model's mean score less the base model's, in -1..1."""

    mean: float
    low: float
    high: float
    samples: int
    differing: int
    """Samples on which the two models' scores differ."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's outcome."""

    passed: bool
    words: str
    """The rule and the outcome."""
    difference: Difference


def difference(base: Sequence[float], tuned: Sequence[float], *, level: float = LEVEL) -> Difference:
    """The mean difference and its interval, from a bootstrap over samples with a fixed seed; at least one sample."""
    pairs = np.asarray(tuned, float) - np.asarray(base, float)
    random = np.random.default_rng(0)
    rounds = max(1, 2**22 // len(pairs))  # 32 MiB of indices at a time
    means: list[float] = []
    while len(means) < RESAMPLES:
        drawn = random.integers(0, len(pairs), (min(rounds, RESAMPLES - len(means)), len(pairs)))
        means.extend(pairs[drawn].mean(axis=1))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    differing = int(np.count_nonzero(np.abs(pairs) > HAIR))
    return Difference(float(pairs.mean()), float(low), float(high), len(pairs), differing)


def half_width(samples: int) -> float:
    """How far the 95 % interval of so many samples will reach to each side of the difference; scores are 0 or 1."""
    return min(1.0, NORMAL * math.sqrt(DIFFERING / samples))


def tells(base: Sequence[float], tuned: Sequence[float], *, min_improvement: float) -> bool:
    """Whether more samples would hardly change the outcome: no answer's score differs, or the interval is far to one side."""
    found = difference(base, tuned, level=SURE)
    if found.differing == 0:
        return True
    return _is_enough(found, min_improvement) and not found.low <= min_improvement <= found.high


def judge(base: Sequence[float], tuned: Sequence[float], *, min_improvement: float) -> Verdict:
    """Passed if the tuned model is better by `min_improvement`, and the samples can tell.

    With 0 it has to be better than the base model, with a negative number it may be worse by as much. Where it scores 0 itself,
    nothing is passed.
    """
    found = difference(base, tuned)
    before, after = float(np.mean(base)), float(np.mean(tuned))
    problem = _problem(found, after, min_improvement)
    good = "the tuned model is better" if min_improvement >= 0 else "the tuned model is not worse than allowed"
    asked = f"; asked for is {min_improvement:+.1%}" if min_improvement else ""
    words = (
        f"{f'not passed: {problem}' if problem else f'passed: {good}'}: score {before:.1%} → {after:.1%}, "
        f"a difference of {found.mean:+.1%} (95 % interval {found.low:+.1%} to {found.high:+.1%}){asked}"
    )
    return Verdict(not problem, words, found)


def _problem(found: Difference, after: float, least: float) -> str:
    """Why the gate is not passed, in words; empty: it is."""
    if found.high < min(least, 0) - HAIR and _is_enough(found, least):
        return "worse than the base model"
    if after <= HAIR or (found.differing == 0 and least >= 0):
        return "no better than the base model"
    reached = found.low >= least - HAIR and (found.low > 0 or least != 0)
    if reached and _is_enough(found, least):
        return ""
    if found.high < least - HAIR and _is_enough(found, least):
        return "less of an improvement than is asked for"
    if found.mean <= 0 and least >= 0:
        return "no better than the base model"
    return f"{found.samples} samples cannot tell"


def _is_enough(found: Difference, least: float) -> bool:
    return (found.differing if least >= 0 else found.samples) >= LEAST_INFORMATIVE
