"""Shared by all tests: a clean environment, so that nothing of this machine's own settings leaks in.

Property tests have no deadline per example: 200 ms would fail them on a busy machine; pytest's own limit stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from steps.machine import quiet_threads
from tests.shared.clean_environment import environment_for, hear_interrupts

LONGEST_FIRST = ("soak", "flow", "train", "job")
"""Folders whose files take longest: begun first, none of them is what one worker waits for at the end."""

settings.register_profile("calm", deadline=None)
settings.register_profile("quick", settings.get_profile("calm"), max_examples=40)  # of `make test`; everywhere else 100
settings.load_profile("calm")
hear_interrupts()
quiet_threads(os.environ)  # before any test imports torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first; the order within a folder stays."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """`environment_for` this test's own folder."""
    return environment_for(tmp_path)


@pytest.fixture(scope="session")
def make_environment() -> Callable[[Path], dict[str, str]]:
    """`environment_for`, for fixtures of a wider scope."""
    return environment_for
