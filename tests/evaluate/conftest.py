"""Fixtures of the evaluate room's tests; what they are made of is in evaluate_data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.evaluate.measure import load_model
from tests.evaluate.evaluate_data import write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model's folder; read only."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def loaded(tiny: Path) -> tuple[Any, Any]:
    """That model in fp32, and its tokenizer."""
    return load_model(tiny, precision="fp32")


@pytest.fixture(scope="session")
def theirs(tiny: Path) -> Any:
    """The same model as transformers loads it, with transformers' own attention: what we are held against."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny).eval()
