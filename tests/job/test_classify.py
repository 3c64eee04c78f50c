"""What happened: a table of remains and the failure they tell of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from steps.job.classify import classify, of_hardware
from steps.job.progress import Passed, Progress, Work, begin
from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from steps.protocol.failure_class import CLASS_OF_EXIT
from steps.protocol.failure_record import FailureRecord

TRAINED = replace(begin(0.0), step=7, trained_at_s=1.0)
UNTRAINED = begin(0.0)
HANG = Passed(Work.STEP, 300.0, 301.0)
NO_ROOM = JobSnapshot(Phase.STARTING, (), Reason.CONFIG, "FailedCreatePod: exceeded quota: tight")


def worker(
    rank: int, code: int | None, at: float | None = 1.0, reason: Reason = Reason.NONE, node: str = ""
) -> WorkerState:
    return WorkerState(rank, f"pid {rank}", node, code, reason, finished_s=at)


def failed(*workers: WorkerState, reason: Reason = Reason.NONE, message: str = "") -> JobSnapshot:
    return JobSnapshot(Phase.FAILED, workers, reason, message)


def record(failure_class: str, rank: int = 0, step: int = 7, message: str = "it broke") -> FailureRecord:
    return FailureRecord(failure_class, message, "RuntimeError", rank, "n", step, 64, 1.0, "a\nb\nlast line")


CASES: list[Any] = [
    pytest.param(failed(worker(0, 1)), [record("user")], None, "user", 0, "RuntimeError: it broke", id="record speaks"),
    pytest.param(
        failed(worker(0, 77, 2.0), worker(1, 64, 1.0)), [record("network"), record("user", 1)], None, "user", 1, "it broke",
        id="cause before symptom, though its record is later",
    ),
    pytest.param(
        failed(worker(0, 77, 2.0), worker(1, -9, 1.0)), [record("network")], None, "unknown", 1, "killed by SIGKILL",
        id="killed peer before the victim's lost connection",
    ),
    pytest.param(
        failed(worker(0, 77), worker(1, None, 0.5)), [record("network")], None, "network", 0, "it broke",
        id="lost connection, nobody else to blame",
    ),
    pytest.param(failed(worker(0, 64)), [record("storage")], None, "storage", 0, "it broke", id="record beats exit code"),
    pytest.param(
        failed(worker(0, 137, 2.0), worker(1, 137, 1.0, Reason.OUT_OF_MEMORY)), [], None, "out_of_memory", 1, "out of memory",
        id="platform's word beats a bare signal",
    ),
    pytest.param(failed(worker(0, -9), reason=Reason.OUT_OF_MEMORY), [], None, "out_of_memory", 0, "out of memory", id="cgroup"),
    pytest.param(failed(worker(3, -11)), [], None, "unknown", 3, "killed by SIGSEGV", id="segmentation fault"),
    pytest.param(failed(worker(0, 143), worker(1, 143)), [], None, "preempted", 0, "a signal asked", id="all stopped"),
    pytest.param(failed(worker(0, 143), worker(1, -9)), [], None, "unknown", 1, "SIGKILL", id="one killed, its peer stopped"),
    pytest.param(failed(worker(1, -9), reason=Reason.STOPPED), [], None, "preempted", None, "asked to stop", id="stopped"),
    pytest.param(failed(worker(1, -9), reason=Reason.LEASE), [], None, "preempted", None, "no supervisor", id="lease"),
    pytest.param(failed(reason=Reason.AGENT, message="gone"), [], None, "unknown", None, "watched over the workers", id="keep"),
    pytest.param(failed(reason=Reason.NODE), [], None, "node", None, "its node failed", id="node lost"),
    pytest.param(failed(worker(0, None, None, Reason.IMAGE)), [], None, "image", 0, "cannot be pulled", id="image"),
    pytest.param(failed(worker(0, 1)), [], None, "unknown", 0, "left no failure record", id="exit 1"),
    pytest.param(failed(), [], None, "unknown", None, "nobody knows how", id="nothing is known"),
    pytest.param(JobSnapshot(Phase.GONE), [], None, "unknown", None, "somebody deleted it", id="gone"),
    pytest.param(JobSnapshot(Phase.SUCCEEDED), [], None, "unknown", None, "without a result", id="exit 0 without result"),
    pytest.param(JobSnapshot(Phase.RUNNING), [], HANG, "hang", None, "nothing was heard for 301 s", id="step gap"),
    pytest.param(JobSnapshot(Phase.RUNNING), [record("user", 1)], HANG, "user", 1, "it broke", id="hang of the others"),
    pytest.param(JobSnapshot(Phase.RUNNING), [record("network", 1)], HANG, "hang", None, "nothing was heard", id="hang"),
    pytest.param(JobSnapshot(Phase.RUNNING), [], Passed(Work.CHECKPOINT, 1, 2), "storage", None, "checkpoint", id="slow save"),
    pytest.param(failed(worker(0, 143)), [record("preempted")], None, "preempted", 0, "stopped", id="stop record"),
    pytest.param(NO_ROOM, [], Passed(Work.STARTUP, 20, 21), "config", None, "exceeded quota", id="quota at the deadline"),
    pytest.param(
        JobSnapshot(Phase.STARTING, (replace(worker(0, None, None, Reason.IMAGE), message="no such host", may_pass=True),)), [],
        Passed(Work.STARTUP, 1800, 1801), "image", 0, "no such host; waited for 1801 s (deadlines.startup_s)", id="late",
    ),
    pytest.param(
        failed(replace(worker(0, None, None, Reason.CONFIG), may_pass=True), worker(1, -9)), [], None, "unknown", 1, "SIGKILL",
        id="what keeps one from starting says nothing of another's end",
    ),
    pytest.param(
        failed(worker(0, 143, 1.0, Reason.PEER, "a"), worker(1, 137, 2.0, node="b")), [], None, "unknown", 1, "SIGKILL",
        id="the culprit speaks after its victim",
    ),
    pytest.param(
        failed(worker(0, 143, 1.0, Reason.PEER)), [], None, "unknown", 0, "that node left no word", id="the culprit never speaks",
    ),
    pytest.param(NO_ROOM, [], HANG, "hang", None, "nothing was heard for 301 s", id="pod gone later, and a quota"),
]  # fmt: skip


@pytest.mark.parametrize(("snapshot", "records", "passed", "expected", "rank", "words"), CASES)
def test_first_failing_one_speaks(
    snapshot: JobSnapshot,
    records: list[FailureRecord],
    passed: Passed | None,
    expected: str,
    rank: int | None,
    words: str,
) -> None:
    failure = classify(snapshot, records, TRAINED, passed)
    assert (failure.failure_class, failure.rank) == (expected, rank)
    assert words in failure.message
    assert failure.step == 7
    assert failure.is_permanent == (expected in ("user", "config", "image"))


@pytest.mark.parametrize(("code", "expected"), [(code, kind) for code, kind in CLASS_OF_EXIT.items() if code != 143])
def test_exit_code_alone_tells_the_class(code: int, expected: str) -> None:
    assert classify(failed(worker(0, code)), [], UNTRAINED).failure_class == expected


def test_record_is_quoted_with_its_last_lines_and_the_node_that_the_platform_names() -> None:
    snapshot = failed(worker(0, 64, node="node-7"))
    failure = classify(snapshot, [record("user", message="RuntimeError in layer 3")], UNTRAINED)
    assert failure.message == "RuntimeError in layer 3"
    assert failure.traceback == ("a", "b", "last line")
    assert (failure.node, failure.step) == ("node-7", 7)


def test_node_of_a_rank_is_that_of_the_pod_that_holds_it() -> None:
    pods = tuple(WorkerState(32 * index, f"w-{index}", f"node-{index}", 76, ranks=32) for index in range(2))
    failures = [classify(failed(*pods), [record("accelerator", rank)], TRAINED) for rank in (0, 31, 32, 63, 64)]
    assert [failure.node for failure in failures] == ["node-0", "node-0", "node-1", "node-1", ""]


def test_broken_hardware_that_looked_like_a_hang_blames_the_node_of_its_rank() -> None:
    pods = tuple(WorkerState(32 * index, f"w-{index}", f"node-{index}", 78, ranks=32) for index in range(2))
    hung = classify(failed(*pods), [record("hang", 3)], TRAINED)
    failure = of_hardware(40, "Uncorrectable HBM memory error (1201)", failed(*pods), hung)
    assert (failure.failure_class, failure.rank, failure.node, failure.step) == ("accelerator", 40, "node-1", 7)
    assert failure.message.startswith(
        "rank 40: Uncorrectable HBM memory error (1201); it looked like hang: RuntimeError"
    )


def test_failure_before_training_has_no_step() -> None:
    assert classify(failed(worker(0, 1)), [record("config", step=0)], UNTRAINED).step is None


def test_worker_that_said_it_stops_was_preempted() -> None:
    stopping = replace(TRAINED, stopping="SIGTERM from the platform")
    failure = classify(failed(worker(0, 1)), [], stopping)
    assert (failure.failure_class, failure.rank) == ("preempted", None)
    assert "SIGTERM from the platform" in failure.message


def test_exit_0_with_a_damaged_result_says_so() -> None:
    done: Progress = replace(TRAINED, finished={"result": "x"})
    assert "not whole" in classify(JobSnapshot(Phase.SUCCEEDED), [], done).message
