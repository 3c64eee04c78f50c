"""Short soaks; the long ones are run by hand (`make soak ARGS="--kills 100"`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.soak import soak
from tests.soak.soak_flow import soak_flow

HEARS = """
import signal, subprocess, sys
from tests.shared.clean_environment import hear_interrupts
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it begins in the background
hear_interrupts()
child = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
"""


def test_a_soak_begun_in_the_background_starts_what_hears_an_interrupt() -> None:
    project = Path(__file__).resolve().parents[2]
    told = subprocess.run([sys.executable, "-c", HEARS], cwd=project, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "True"


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_a_training_killed_twice_ends_with_the_bits_of_a_straight_one(tmp_path: Path) -> None:
    told = soak(tmp_path, kills=2, seed=371, processes=1, steps=40)
    assert (told["identical"], told["kills"]) == (True, 2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_killed_again_and_again_ends_with_the_bits_of_a_straight_one(tmp_path: Path, processes: int) -> None:
    told = soak(tmp_path, kills=6, seed=7, processes=processes, steps=60)
    assert (told["identical"], told["kills"]) == (True, 6)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_flow_killed_whole_again_and_again_ends_with_the_bits_of_a_straight_one(tmp_path: Path) -> None:
    told = soak_flow(tmp_path, kills=4, seed=5, processes=1, steps=60)
    assert (told["identical"], told["same_merged_model_and_report"], told["kills"]) == (True, True, 7)
