"""`python -m tests.neuron`, which `make test-neuron` calls, never ends well without having tested anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.neuron import needed

ROOT = Path(__file__).parents[3]


def test_without_the_libraries_it_fails_and_says_where_they_are() -> None:
    command = [sys.executable, "-S", "-m", "tests.neuron"]  # -S: no package at all
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "nothing was tested: torch_xla, neuronx_distributed, optimum.neuron, pytest" in done.stderr
    assert "--build-arg TESTS=yes" in done.stderr


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ((), ""),
        (("pytest_timeout",), "or: pip install --no-deps --require-hashes -r containers/neuron-tests.lock"),
        (("torch_xla",), "aws-neuron/neuronx-distributed at tag v2.26.0"),
    ],
)
def test_what_is_missing_is_named_with_its_source(
    monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(needed, "is_here", lambda name: name not in absent)
    assert words in needed.why_not()
    assert bool(needed.why_not()) is bool(absent)


def test_a_package_inside_one_that_is_not_there_is_missing() -> None:
    assert needed.missing(("no_such_thing.neuron", "json")) == ["no_such_thing.neuron"]
