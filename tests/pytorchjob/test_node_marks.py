"""A node that the platform takes away: its words are told in the place of a bare signal."""

from __future__ import annotations

import pytest

from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from steps.pytorchjob.node_marks import HEALTH, mark_of, with_marks

MARKED = {
    "metadata": {
        "name": "node-1",
        "labels": {HEALTH: "UnschedulablePendingReboot", "sagemaker.amazonaws.com/fault-types": "NeuronHang"},
        "annotations": {"sagemaker.amazonaws.com/fault-details": '[{"reason": "r"}]'},
    }
}
WORDS = 'the platform marked node node-1 UnschedulablePendingReboot: NeuronHang, [{"reason": "r"}]'


def test_the_words_about_a_node() -> None:
    assert mark_of(MARKED) == WORDS
    assert mark_of({"metadata": {"name": "n", "labels": {HEALTH: "Schedulable"}}}) == ""
    assert mark_of({}) == ""


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (WorkerState(0, "w", "node-1", 137), Reason.NODE),
        (WorkerState(0, "w", "node-1", 143), Reason.NODE),
        (WorkerState(0, "w", "node-2", 137), Reason.NONE),
        (WorkerState(0, "w", "node-1", 64), Reason.NONE),
        (WorkerState(0, "w", "node-1", 137, Reason.OUT_OF_MEMORY), Reason.OUT_OF_MEMORY),
        (WorkerState(0, "w", "node-1"), Reason.NONE),
    ],
    ids=["killed", "stopped", "on another node", "an error of its own", "explained", "runs"],
)
def test_a_worker_that_was_ended_without_a_word(worker: WorkerState, reason: Reason) -> None:
    (found,) = with_marks(JobSnapshot(Phase.FAILED, (worker,)), {"node-1": WORDS, "node-2": ""}).workers
    assert found.reason is reason
    assert (found.message == WORDS) == (reason is Reason.NODE)
