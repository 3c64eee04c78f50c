"""A person's mistake at each entry point, in a process of its own: words, an exit code, no traceback.

The flow's own command has a test file of its own (`flow/test_mistakes_at_the_door.py`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.mistake_words import NOT_FOR_PEOPLE

COMMAND = "from steps.cli.main import main; main()"
ENTRIES: dict[str, tuple[list[str], list[str]]] = {
    "hyperpod-lora, an unknown command": (["-c", COMMAND, "clea"], ["No such command 'clea'"]),
    "hyperpod-lora, an option misspelt": (["-c", COMMAND, "clean", "--yess"], ["No such option", "--yes"]),
    "hyperpod-lora, no such run": (
        ["-c", COMMAND, "status", "17", "--root", "nowhere"],
        ["no run '17' below", "nowhere"],
    ),
    "the worker, no such spec": (
        ["-m", "steps.train.worker", "nowhere/spec.json", "--attempt", "1"],
        ["nowhere/spec.json", "StorageError"],
    ),
    "the compiler, no instance named": (
        ["-m", "steps.export.compile", "merged", "out"],
        ["the following arguments are required: --tensor-parallel, --instance-type"],
    ),
}


@pytest.mark.parametrize(("words", "expected"), ENTRIES.values(), ids=ENTRIES)
def test_a_mistake_is_told_in_words(
    tmp_path: Path, clean_environment: dict[str, str], words: list[str], expected: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=clean_environment, capture_output=True, text=True, timeout=100
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert not [word for word in expected if word not in said], said
    assert not NOT_FOR_PEOPLE.search(said.replace("StorageError:", "")), said
