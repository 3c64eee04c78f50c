"""Places for flow runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flow.flow_harness import Place


def make_place(folder: Path, environment: dict[str, str]) -> Place:
    (folder / ".metaflow").mkdir(exist_ok=True)
    return Place(folder, environment)


@pytest.fixture
def place(tmp_path: Path, clean_environment: dict[str, str]) -> Place:
    """A fresh place for one test."""
    return make_place(tmp_path, clean_environment)


@pytest.fixture(scope="module")
def module_place(tmp_path_factory: pytest.TempPathFactory, make_environment: Callable[[Path], dict[str, str]]) -> Place:
    """A place shared by the tests of a module."""
    folder = tmp_path_factory.mktemp("place")
    return make_place(folder, make_environment(folder))
