"""Shared by all tests: a clean environment, so that nothing of this machine's own settings leaks in.

Property tests have no deadline per example: 200 ms would fail them on a busy machine; pytest's own limit stays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from clean_environment import environment_for
from hypothesis import settings

settings.register_profile("calm", deadline=None)
settings.load_profile("calm")


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """`environment_for` this test's own folder."""
    return environment_for(tmp_path)


@pytest.fixture(scope="session")
def make_environment() -> Callable[[Path], dict[str, str]]:
    """`environment_for`, for fixtures of a wider scope."""
    return environment_for
