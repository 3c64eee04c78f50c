"""The agent's report: what it says when a read fails, and whose failure it is when a peer's flag comes between."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from steps.job.agent import agent as module
from steps.job.agent import processes
from steps.job.agent.agent import PEER, Agent
from steps.job.agent.endings import TORCHRUN_EVENT, first_failure
from steps.protocol.train_dir import AttemptDir

PLAN = {"module": "m", "spec": "s", "attempt": 1, "processes": 2, "grace_s": 5, "lease_s": 600, "node_name": "node-7"}


def agent_of(folder: Path, *codes: int | None) -> Agent:
    """Of an attempt whose torchrun told these exit codes by rank; None: it told none."""
    lines = [
        TORCHRUN_EVENT + f'FAILED", "metadata": {json.dumps(told)}}}'
        for told in (
            {"global_rank": rank, "metadata": json.dumps({"exit_code": [code]})}
            for rank, code in enumerate(codes)
            if code is not None
        )
    ]
    (folder / "torchrun.log").write_text("\n".join(lines))
    for rank in range(len(codes)):
        gone = {**processes.identify(os.getpid()), "pid": 2**22 + rank}
        (folder / f"rank-{rank}.json").write_text(json.dumps(gone))
    return Agent(folder, PLAN)


@pytest.mark.parametrize(
    ("code", "kills", "reason"),
    [(-9, 1, "oom_kill"), (-9, 0, ""), (70, 0, ""), (77, 0, PEER), (-15, 0, PEER)],
    ids=["out of memory", "killed", "failed", "lost its peer", "stopped"],
)
def test_a_rank_that_failed_before_the_peers_flag_is_not_hidden_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kills: int, reason: str
) -> None:
    made = agent_of(tmp_path, code, -15)
    made._note_ends()
    AttemptDir(tmp_path).peer_failed.touch()
    made._look_at_shared()
    monkeypatch.setattr(module, "oom_kills", lambda: made._oom_kills + kills)
    report = made._report(1)
    assert (report["reason"], report["node"]) == (reason, "node-7")


def test_a_rank_that_fails_after_the_flag_is_a_victim(tmp_path: Path) -> None:
    made = agent_of(tmp_path, -9, -15)
    AttemptDir(tmp_path).peer_failed.touch()
    made._look_at_shared()
    made._note_ends()
    assert made._report(1)["reason"] == PEER


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_one_failed_read_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    made = agent_of(tmp_path, 0, 0)

    def refuse(self: Path, *_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        for name in ("read_text", "exists", "glob"):
            broken.setattr(Path, name, refuse)
        made._look()
        with broken.context() as readable:
            readable.setattr(Path, "glob", lambda self, pattern: iter([tmp_path / "rank-0.json"]))
            made._look()  # the file is there, and cannot be read
    made._look()
    assert sorted(made._identities()) == [0, 1]
    assert made._stop_reason == ""


def test_the_first_rank_that_failed_by_itself() -> None:
    ranks = {
        "0": {"exit_code": -15, "finished_s": 1.0},
        "1": {"exit_code": 70, "finished_s": 3.0},
        "2": {"exit_code": -9, "finished_s": 2.0},
    }
    assert first_failure({"ranks": ranks}) == (2, -9)
    assert first_failure({"ranks": {"0": {"exit_code": 0, "finished_s": 1.0}}}) is None
    assert first_failure({}) is None
