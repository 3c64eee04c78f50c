"""Tables of the snapshot's translation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState, reason_of, signal_name, snapshot_of_local

FOUND: dict[str, Any] = {
    "created": True, "agent_alive": True, "rebooted": False, "exit": None, "pids": {}, "processes": 2, "remaining": 3
}  # fmt: skip
ENDED = {"exit_code": 1, "reason": "", "message": "", "ranks": {"1": {"exit_code": -9, "finished_s": 7.0}}}


@pytest.mark.parametrize(
    ("changes", "phase", "reason"),
    [
        pytest.param({"created": False}, Phase.GONE, Reason.NONE, id="never created"),
        pytest.param({}, Phase.STARTING, Reason.NONE, id="no rank yet"),
        pytest.param({"pids": {0: 5}}, Phase.STARTING, Reason.NONE, id="one rank of two"),
        pytest.param({"pids": {0: 5, 1: 6}}, Phase.RUNNING, Reason.NONE, id="all ranks"),
        pytest.param({"agent_alive": False}, Phase.FAILED, Reason.AGENT, id="keeper killed"),
        pytest.param({"agent_alive": False, "rebooted": True}, Phase.FAILED, Reason.NODE, id="machine restarted"),
        pytest.param({"exit": {**ENDED, "exit_code": 0}}, Phase.SUCCEEDED, Reason.NONE, id="succeeded"),
        pytest.param({"exit": ENDED}, Phase.FAILED, Reason.NONE, id="failed"),
        pytest.param({"exit": {**ENDED, "reason": "stopped"}}, Phase.FAILED, Reason.STOPPED, id="stopped"),
        pytest.param({"exit": {**ENDED, "reason": "lease"}}, Phase.FAILED, Reason.LEASE, id="lease ended"),
        pytest.param({"exit": {**ENDED, "reason": "oom_kill"}}, Phase.FAILED, Reason.OUT_OF_MEMORY, id="oom"),
        pytest.param({"exit": {"exit_code": 1}}, Phase.FAILED, Reason.NONE, id="no rank told"),
    ],
)
def test_local_state_becomes_a_phase(changes: dict[str, Any], phase: Phase, reason: Reason) -> None:
    snapshot = snapshot_of_local({**FOUND, **changes})
    assert (snapshot.phase, snapshot.reason, snapshot.remaining) == (phase, reason, 3)


def test_ended_ranks_carry_pid_code_and_time() -> None:
    snapshot = snapshot_of_local({**FOUND, "exit": ENDED, "pids": {1: 66}})
    assert snapshot.workers == (WorkerState(1, "pid 66", exit_code=-9, finished_s=7.0),)


def test_snapshot_is_plain_json() -> None:
    snapshot = JobSnapshot(Phase.FAILED, (WorkerState(0, exit_code=1),), Reason.NODE)
    assert json.loads(json.dumps(snapshot.to_dict()))["phase"] == "failed"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("OOMKilled", Reason.OUT_OF_MEMORY),
        ("ImagePullBackOff", Reason.IMAGE),
        ("CreateContainerConfigError", Reason.CONFIG),
        ("PreemptionByScheduler", Reason.PREEMPTED),
        ("NodeLost", Reason.NODE),
        ("Error", Reason.NONE),
        ("a word of a later version", Reason.NONE),
        (None, Reason.NONE),
    ],
)
def test_platforms_word_is_translated_or_nothing(word: str | None, reason: Reason) -> None:
    assert reason_of(word) is reason


@pytest.mark.parametrize(
    ("code", "number", "has_failed"),
    [
        (None, None, False),
        (0, None, False),
        (1, None, True),
        (-9, 9, True),
        (137, 9, True),
        (143, 15, True),
        (255, None, True),
    ],
)
def test_signal_is_read_from_either_form_of_an_exit_code(
    code: int | None, number: int | None, has_failed: bool
) -> None:
    worker = WorkerState(0, exit_code=code)
    assert (worker.signal, worker.has_failed) == (number, has_failed)


def test_signals_have_names() -> None:
    assert (signal_name(9), signal_name(64), signal_name(63)) == ("SIGKILL", "SIGRTMAX", "signal 63")
