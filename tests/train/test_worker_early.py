"""A worker that fails before it has begun says so where the supervisor looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.protocol.failure_record import read_records
from steps.protocol.rundir import TrainDir
from steps.train.worker import main


@pytest.mark.parametrize("text", [None, "{", '{"schema": "other"}'], ids=["missing", "torn", "another-version"])
def test_a_spec_that_cannot_be_read_is_recorded_in_the_attempts_directory(tmp_path: Path, text: str | None) -> None:
    train = TrainDir(tmp_path / "train-x")
    train.path.mkdir()
    if text is not None:
        train.spec.write_text(text)
    code = main([str(train.spec), "--attempt", "2"])
    (record,) = read_records(train.attempt(2))
    assert record.exit_code == code != 0
    assert "spec.json" in record.message
    assert not list(train.path.glob("failure-*")), "nobody looks there"
