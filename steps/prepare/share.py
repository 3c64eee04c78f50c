"""How many samples are held out: the share that was asked for, or as many as it takes to tell two models apart. Pure.

Called by `collect` and `split`. With n samples the 95 % interval of the difference between two models reaches 1.96 · √(d / n) to
each side of it, where d is the share of answers that they answer differently (see `evaluate.gate`): for a third, 10 points with
FEWEST samples and 5 with MOST.
"""

from __future__ import annotations

from dataclasses import dataclass

FEWEST, MOST = 128, 512
LARGEST_SHARE = 1 / 5
"""Of few samples: what is held out is not learned from."""
USUAL_SHARE = 1 / 10
HAIR = 1e-9
"""Rounding: a tenth of 1,280 is 128."""
OPEN = 0.5
"""Position between the two sides of a source that names them, where no share was asked for."""
SLACK = 2.0
"""Up to so many times the share may have to be looked at: duplicates are known only at the end."""


def usual_share(samples: int) -> float:
    """Of so many samples: a tenth, but FEWEST to MOST of them and never more than a fifth. It falls as they grow."""
    return min(MOST / samples, max(USUAL_SHARE, min(FEWEST / samples, LARGEST_SHARE)))


def enough(samples: int) -> int:
    """As many of so many samples, at least one."""
    return max(1, int(usual_share(samples) * samples + HAIR))


@dataclass(frozen=True, slots=True)
class Share:
    """Which positions in [0, 1) are held out."""

    fraction: float
    """As asked for; 0: as many as are enough."""
    has_sides: bool = False
    """The source says of each sample where it belongs."""

    @property
    def between(self) -> float:
        """Samples that a source names as held out lie below, those to train on do not."""
        return self.fraction or OPEN

    def below(self, samples: int) -> float:
        """Of so many samples, or more, only those at lower positions can be held out. It falls as they grow."""
        if self.fraction or self.has_sides or not samples:
            return self.between
        return min(OPEN, SLACK * usual_share(samples))

    def most(self, samples: int) -> int:
        """Of so many distinct samples, those that are held out at most."""
        return samples if self.fraction or self.has_sides else enough(samples)
