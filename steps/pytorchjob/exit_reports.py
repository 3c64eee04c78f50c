"""What the nodes of an attempt wrote on the shared directory about their own end, put beside what their pods tell.

A pod may be slow to tell: its victim ends first, or the API is away. The node's own exit.json is there already, and it names the
rank that failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from steps.job.agent.agent import read_or_empty
from steps.job.agent.endings import first_failure
from steps.job.snapshot import JobSnapshot, WorkerState, reason_of
from steps.protocol.train_dir import AttemptDir


def read_reports(attempt: Path, nodes: int) -> dict[int, dict[str, Any]]:
    """The reports in an attempt's directory, by node; of nodes that have written one."""
    found = {node: read_or_empty(AttemptDir(attempt).node(node).exit) for node in range(nodes)}
    return {node: report for node, report in found.items() if report}


def with_reports(snapshot: JobSnapshot, reports: Mapping[int, Mapping[str, Any]], processes: int) -> JobSnapshot:
    """The snapshot, with the ends of nodes whose pods have not told theirs."""
    workers = {worker.rank // processes: worker for worker in snapshot.workers}
    for node, report in reports.items():
        known = workers.get(node) or WorkerState(node * processes, node=str(report.get("node", "")), ranks=processes)
        failure = first_failure(report)
        if failure and known.exit_code is None and report.get("reason") in ("", "oom_kill"):
            rank, code = failure
            finished_s = float(report["ranks"][str(rank)]["finished_s"])
            reason = reason_of(report["reason"])
            workers[node] = replace(known, exit_code=code, reason=reason, finished_s=finished_s, may_pass=False)
    return replace(snapshot, workers=tuple(workers[node] for node in sorted(workers)))
