"""A run that an earlier version began with its own default share goes on with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steps.flow.training import FILE, with_share_of
from steps.protocol.rundir import RunDir
from tests.shared.sample_records import plan_of


@pytest.mark.parametrize(
    ("kept", "asked", "expected"),
    [({"plan": {"validation_fraction": 0.1}}, {}, 0.1), ({"plan": {}}, {}, 0.0), (None, {}, 0.0),
     ({"plan": {"validation_fraction": 0.1}}, {"validation_fraction": 0.3}, 0.3)],
)  # fmt: skip
def test_a_continued_run_holds_out_what_it_held_out(
    tmp_path: Path, kept: dict[str, object] | None, asked: dict[str, float], expected: float
) -> None:
    if kept is not None:
        (tmp_path / FILE).write_text(json.dumps(kept))
    assert with_share_of(RunDir(tmp_path), plan_of(**asked)).validation_fraction == expected
