"""A broken accelerator: which node it is, however the attempt ended, and that the next attempt goes without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steps.errors import JobRetriesExhausted
from steps.job.attempt import OTHERS_S
from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from tests.job.job_fakes import Attempt, Script
from tests.job.test_supervise import Stage, succeed

WORDS = "(FATAL-RT-UNDEFINED-STATE) Uncorrectable HBM memory error is detected. Execution results may be invalid."


def pods(exit_code: int) -> tuple[WorkerState, ...]:
    """Two pods of 32 ranks."""
    return tuple(
        WorkerState(32 * index, f"w-{index}", f"node-{index}", exit_code, started_s=1.0, ranks=32) for index in range(2)
    )


def breaks(logged: str, *, record: str = "hang", exit_code: int = 78, saves: int = 4) -> Script:
    """A healthy rank of node 0 gives up waiting; what happened is in the log of a rank of node 1."""

    def script(attempt: Attempt, look: int) -> None:
        attempt.start()
        attempt.train(1, saves)
        attempt.save(saves)
        (attempt.job.directory.attempt(attempt.number) / "rank-40.log").write_text(f"step 4\n{logged}\nNRT_TIMEOUT\n")
        attempt.record(record, exit_code, step=saves)
        attempt.snapshot = JobSnapshot(Phase.FAILED, pods(exit_code))

    return script


def stage(folder: Path, *scripts: Script, **deadlines: float) -> Stage:
    made = Stage(folder, *scripts, deadlines={"startup_s": 60, **deadlines})
    made.job = replace(made.job, nodes=2, processes=32)
    return made


@pytest.mark.parametrize(
    ("logged", "record", "created"),
    [
        (WORDS, "hang", "create 2 without node-1"),
        (WORDS, "network", "create 2 without node-1"),
        ("suspected hang in collectives", "hang", "create 2"),
        ("nothing of the kind", "accelerator", "create 2 without node-0"),
    ],
    ids=["a time-out beside it", "a lost collective beside it", "only symptoms", "told by the record of a rank"],
)
def test_the_next_attempt_goes_without_the_node(logged: str, record: str, created: str, tmp_path: Path) -> None:
    made = stage(tmp_path, breaks(logged, record=record), succeed)
    made.run()
    assert [call for call in made.launcher.calls if call.startswith("create")] == ["create 1", created]
    if created.endswith("node-1"):
        first = made.history["attempts"][0]
        assert (first["failure_class"], first["rank"], first["node"]) == ("accelerator", 40, "node-1")
        (told,) = made.notices
        assert "accelerator after step 4: rank 40: (FATAL-RT-UNDEFINED-STATE) Uncorrectable HBM" in told
        assert told.endswith("starts in 5 s from step 4 of 10, without node-1 as long as others have room")


def test_a_supervisor_that_comes_later_avoids_it_too(tmp_path: Path) -> None:
    def ctrl_c(attempt: Attempt, look: int) -> None:
        if look == 0:
            raise KeyboardInterrupt

    made = stage(tmp_path, breaks(WORDS), ctrl_c, succeed)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    made.run()
    assert "create 3 without node-1" in made.launcher.calls


def no_room(attempt: Attempt, look: int) -> None:
    """One of its two pods is placed, the other never."""
    placed = WorkerState(0, "w-0", "node-0", started_s=1.0, ranks=32)
    waiting = WorkerState(
        32, "w-1", reason=Reason.UNSCHEDULABLE, message="0/2 nodes are available", ranks=32, may_pass=True
    )
    attempt.snapshot = JobSnapshot(Phase.STARTING, (placed, waiting), remaining=2)


def test_where_no_other_node_has_room_it_is_used_again_after_one_wait(tmp_path: Path) -> None:
    made = stage(tmp_path, breaks(WORDS), no_room, succeed, startup_s=1800)
    made.run()
    creates = [call for call in made.launcher.calls if call.startswith("create")]
    assert creates == ["create 1", "create 2 without node-1", "create 3 rather without node-1"]
    second = made.history["attempts"][1]
    assert (second["excluded"], second["lacks_room"], second["failure_class"]) == (["node-1"], True, "node")
    assert OTHERS_S <= second["spent_s"] < OTHERS_S + 10
    assert "waited for 600 s (without node-1, which is left out)" in made.notices[-1]
    assert "without node-1 if others have room" in made.notices[-1]


def test_waiting_for_others_uses_up_no_retry_and_it_ends_all_the_same(tmp_path: Path) -> None:
    again = breaks(WORDS, saves=0)
    made = stage(tmp_path, again, no_room, again, no_room, again)
    with pytest.raises(JobRetriesExhausted, match="3 attempts in a row"):
        made.run()
    assert len(made.launcher.attempts) == 5


def test_with_min_nodes_it_goes_on_with_fewer_rather_than_with_the_broken_one(tmp_path: Path) -> None:
    made = stage(tmp_path, breaks(WORDS), no_room, succeed)
    made.job = replace(made.job, node_choices=(2, 1))
    made.run()
    assert "create 3 without node-1" in made.launcher.calls
    assert [item["nodes"] for item in made.history["attempts"]] == [2, 2, 1]


def test_a_queue_that_does_not_admit_it_without_the_node_is_no_room_either(tmp_path: Path) -> None:
    def queued(attempt: Attempt, look: int) -> None:
        attempt.snapshot = JobSnapshot(Phase.QUEUED, remaining=1)

    made = stage(tmp_path, breaks(WORDS), queued, succeed, queue_s=1000)
    made.run()
    assert "create 3 rather without node-1" in made.launcher.calls
