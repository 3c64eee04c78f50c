"""A short soak; the long one is run by hand (`make soak ARGS="--kills 100"`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from soak import soak


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_killed_again_and_again_ends_with_the_bits_of_a_straight_one(tmp_path: Path, processes: int) -> None:
    told = soak(tmp_path, kills=6, seed=7, processes=processes, steps=120)
    assert told["identical"]
    assert told["kills"] >= 3
