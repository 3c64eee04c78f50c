"""What `pip install` of this project asks of an environment that holds other packages as well."""

from __future__ import annotations

import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8"))["project"]


def test_every_dependency_is_a_range_with_a_lower_bound() -> None:
    asked = PROJECT["dependencies"]
    assert not [item for item in asked if "==" in item]
    assert not [item for item in asked if ">=" not in item]
