"""What the nodes wrote about their own end, beside what their pods tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from steps.pytorchjob.exit_reports import read_reports, with_reports

VICTIM = WorkerState(0, "w-0", "node-0", 143, Reason.PEER, finished_s=1.0, ranks=2)
RUNS = WorkerState(2, "w-1", "node-1", ranks=2)


def report(code: int = -9, reason: str = "") -> dict[str, Any]:
    ranks = {"2": {"exit_code": -15, "finished_s": 4.0}, "3": {"exit_code": code, "finished_s": 3.0}}
    return {"exit_code": 1, "reason": reason, "ranks": ranks, "finished_s": 5.0, "node": "node-1"}


@pytest.mark.parametrize("others", [(RUNS,), ()], ids=["its pod runs on", "its pod is gone"])
@pytest.mark.parametrize(("reason", "expected"), [("", Reason.NONE), ("oom_kill", Reason.OUT_OF_MEMORY)])
def test_a_node_speaks_before_its_pod(others: tuple[WorkerState, ...], reason: str, expected: Reason) -> None:
    found = with_reports(JobSnapshot(Phase.FAILED, (VICTIM, *others)), {1: report(reason=reason)}, 2)
    told = found.workers[1]
    assert (told.rank, told.node, told.exit_code, told.reason, told.finished_s) == (2, "node-1", -9, expected, 3.0)
    assert not found.names_another


@pytest.mark.parametrize(
    "said", [report(reason="peer"), report(code=-15), {"ranks": {}}], ids=["victim", "ended", "none"]
)
def test_a_node_that_names_no_failure_of_its_own_changes_nothing(said: dict[str, Any]) -> None:
    snapshot = JobSnapshot(Phase.FAILED, (VICTIM, RUNS))
    assert with_reports(snapshot, {1: said}, 2) == snapshot


def test_what_a_pod_tells_itself_stands() -> None:
    ended = WorkerState(2, "w-1", "node-1", 66, ranks=2)
    snapshot = JobSnapshot(Phase.FAILED, (VICTIM, ended))
    assert with_reports(snapshot, {1: report()}, 2) == snapshot


def test_reports_are_read_where_there_are_any(tmp_path: Path) -> None:
    folder = tmp_path / "nodes" / "001"
    folder.mkdir(parents=True)
    assert read_reports(tmp_path, 2) == {}
    (folder / "exit.json").write_text(json.dumps(report()))
    assert read_reports(tmp_path, 2) == {1: report()}
