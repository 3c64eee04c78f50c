"""What HyperPod says about a node that it takes away: its workers only see a signal. Pure.

Labels as HyperPod's health monitoring sets them: facts/hyperpod.md §3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from steps.job.snapshot import JobSnapshot, Reason, WorkerState

PREFIX = "sagemaker.amazonaws.com/"
HEALTH = f"{PREFIX}node-health-status"
HEALTHY = frozenset({"", "Schedulable"})


def mark_of(node: Mapping[str, Any]) -> str:
    """The platform's words about a node that it does not let new work onto; empty if there are none."""
    metadata = node.get("metadata") or {}
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    status = str(labels.get(HEALTH, ""))
    if status in HEALTHY:
        return ""
    why = [
        labels.get(f"{PREFIX}fault-types"),
        labels.get(f"{PREFIX}fault-reasons"),
        notes.get(f"{PREFIX}fault-details"),
    ]
    told = ", ".join(str(item)[:200] for item in why if item)
    return f"the platform marked node {metadata.get('name', '')} {status}{f': {told}' if told else ''}"


def is_unexplained(worker: WorkerState) -> bool:
    """It was ended by a signal, and nobody says why."""
    return bool(worker.node) and worker.signal is not None and worker.reason is Reason.NONE


def with_marks(snapshot: JobSnapshot, marks: Mapping[str, str]) -> JobSnapshot:
    """The snapshot, with the platform's words about the nodes of workers that were ended without any."""
    workers = tuple(
        replace(worker, reason=Reason.NODE, message=marks[worker.node])
        if is_unexplained(worker) and marks.get(worker.node)
        else worker
        for worker in snapshot.workers
    )
    return replace(snapshot, workers=workers)
