"""The command line called in this process, and made-up run directories for it to look at."""

from __future__ import annotations

import os
import time
from pathlib import Path

from click.testing import CliRunner, Result

from steps.cli.main import main
from steps.protocol.checkpoints import Writer, checkpoint_path, commit
from steps.protocol.rundir import TrainDir


def call(*words: str | Path, **environment: str) -> Result:
    """What a command prints; its errors must be sentences."""
    result = CliRunner(env=environment).invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def make_run(root: Path, run: str = "7", *, age_days: float = 0.0) -> TrainDir:
    """A run directory with one checkpoint and no process."""
    train = TrainDir(root / "LoraFlow" / run / "train-abc")
    path = checkpoint_path(train.checkpoints, 40, Writer(1, 1))
    path.mkdir(parents=True)
    (path / "state").write_text("x")
    commit(path, step=40, writer=Writer(1, 1), identity="abc", layout={})
    then = time.time() - age_days * 86400
    for found in (train.path.parent, *train.path.parent.rglob("*")):
        os.utime(found, (then, then))
    return train


def make_log(folder: Path, *lines: str, attempt: int = 1, rank: int = 0) -> Path:
    """A rank's log with these lines."""
    path = TrainDir(folder).attempt(attempt) / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
