"""Shared by all tests: a clean environment, so that nothing of this machine's own settings leaks in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from clean_environment import environment_for


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """`environment_for` this test's own folder."""
    return environment_for(tmp_path)


@pytest.fixture(scope="session")
def make_environment() -> Callable[[Path], dict[str, str]]:
    """`environment_for`, for fixtures of a wider scope."""
    return environment_for
