"""What is told of jobs that only the cluster shows: which ones a word means, state, progress, what they wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.cli.view.cluster_jobs import (
    SeenJob,
    by_training,
    choose,
    describe,
    lines_of_rank,
    listen,
    meant,
    see,
    see_all,
)
from steps.errors import ClusterError
from steps.job.snapshot import Phase
from tests.shared.cluster_objects import BORN_S, event_lines, make_job, make_pod

FIRST = make_job()
SECOND = make_job("tiny-orders-train-0a1b2c3d-a2", attempt=2, born=100.0)
OTHER = make_job(
    "llama3-alpaca-train-99999999-a1", run="LoraFlow/18", born=50.0, directory="/fsx/runs/LoraFlow/18/train-x"
)


def seen(job: dict[str, Any], *phases: str, hint: str = "") -> SeenJob:
    return see(job, [make_pod(job, index, phase) for index, phase in enumerate(phases)], hint)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        pytest.param("17", ["…a1", "…a2"], id="run id"),
        pytest.param("LoraFlow/17", ["…a1", "…a2"], id="flow and run id"),
        pytest.param("tiny-orders-train-0a1b2c3d-a1", ["…a1"], id="a job's name"),
        pytest.param("/fsx/runs/LoraFlow/17", ["…a1", "…a2"], id="a run's folder"),
        pytest.param("/fsx/runs/LoraFlow/../LoraFlow/17/", ["…a1", "…a2"], id="the same in other words"),
    ],
)
def test_a_run_is_found_by(given: str, names: list[str]) -> None:
    found = choose(see_all([SECOND, OTHER, FIRST], [], {}), given, namespace="ns")
    assert [f"…{job.name[-2:]}" for job in found] == names


def test_a_run_is_found_by_a_folder_that_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "runs" / "LoraFlow" / "17").mkdir(parents=True)
    (tmp_path / "short").symlink_to(tmp_path / "runs" / "LoraFlow")
    job = make_job(directory=str(tmp_path / "short" / "17" / "train-x"))
    assert meant(see_all([job, OTHER], [], {}), str(tmp_path / "runs" / "LoraFlow" / "17"), namespace="ns")
    assert not meant(see_all([job, OTHER], [], {}), str(tmp_path / "runs" / "LoraFlow"), namespace="ns")


def test_an_unknown_run_is_answered_with_the_nearest_and_where_to_look() -> None:
    with pytest.raises(ClusterError) as caught:
        choose(see_all([FIRST, OTHER], [], {}), "tiny-orders-train-0a1b2c3d", namespace="ns")
    assert "did you mean 'tiny-orders-train-0a1b2c3d-a1'" in str(caught.value)
    assert "no PyTorchJob of run 'tiny-orders-train-0a1b2c3d' in namespace ns" in str(caught.value)
    with pytest.raises(ClusterError, match=r"there is none.*A job that has ended is deleted"):
        choose([], "17", namespace="ns")


def test_a_run_id_of_two_flows_is_asked_back() -> None:
    both = see_all([FIRST, make_job("other-a1", run="ProbeFlow/17")], [], {})
    with pytest.raises(ClusterError, match="say LoraFlow/17 or ProbeFlow/17"):
        choose(both, "17", namespace="ns")


def test_attempts_of_a_training_stand_together_the_newest_training_last() -> None:
    groups = by_training(see_all([FIRST, OTHER, SECOND], [], {}))
    assert [[job.attempt for job in jobs] for jobs in groups] == [[1], [1, 2]]
    assert groups[-1][-1].run == "LoraFlow/17"


def test_a_running_job_shows_its_last_step_and_goodput() -> None:
    job = seen(FIRST, "Running", "Running")
    told = listen("\n".join(["a line", *event_lines(5)]), job, BORN_S + 20.0)
    assert describe([job], told, BORN_S + 20.0) == [
        "LoraFlow/17, train: running, attempt 1, 2 nodes × 2 processes, 20 s old",
        "  job        ns/tiny-orders-train-0a1b2c3d-a1",
        "  progress   step 5/10 | loss 0.2000 | 200 tokens/s | 2 s left",
        "  goodput    12% of this attempt",
        "  directory  /fsx/runs/LoraFlow/17/train-x",
    ]


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        pytest.param(event_lines(0), "  progress   first step", id="compiling"),
        pytest.param(event_lines(0)[:1], "  progress   model load", id="loading"),
        pytest.param(event_lines(1), "  progress   step 1/10", id="only the first step"),
        pytest.param(["nothing of ours"], None, id="no event"),
    ],
)
def test_before_the_first_steps_the_work_is_named(lines: list[str], shown: str | None) -> None:
    job = seen(FIRST, "Running", "Running")
    found = describe([job], listen("\n".join(lines), job, BORN_S + 20.0), BORN_S + 20.0)
    assert [line for line in found if line.startswith("  progress")] == ([shown] if shown else [])


def test_a_log_that_does_not_reach_back_gives_no_goodput() -> None:
    told = listen("\n".join(event_lines(9)[-4:]), seen(FIRST, "Running", "Running"), BORN_S + 20.0)
    assert told.goodput is None
    assert told.line.startswith("step 9/10")


def test_a_job_without_pods_says_what_it_waits_for() -> None:
    created = make_job(conditions=("Created",))
    assert "  waits      exceeded quota" in describe([seen(created, hint="exceeded quota")], None, BORN_S)
    assert "  waits      for its pods to start" in describe([seen(created, "Pending", "Pending")], None, BORN_S)
    queued = make_job(conditions=("Suspended",))
    assert seen(queued).state == "queued"
    assert "  waits      suspended: waits to be admitted" in describe([seen(queued)], None, BORN_S)


def test_a_failed_job_tells_class_and_the_platforms_word() -> None:
    failed = make_job(conditions=("Created", "Failed"))
    ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2023-11-14T22:14:00Z"}
    status = {"containerStatuses": [{"name": "pytorch", "state": {"terminated": ended}}]}
    job = see(failed, [make_pod(failed, 0), make_pod(failed, 1, "Failed", **status)])
    [line] = [line for line in describe([job], None, BORN_S) if line.startswith("  failed")]
    assert line.startswith(
        "  failed     out_of_memory: rank 2 (tiny-orders-train-0a1b2c3d-a1-worker-1): the platform killed it"
    )


def test_a_job_on_its_way_out_says_so_and_earlier_attempts_have_a_line() -> None:
    leaving = seen(make_job("x-a2", attempt=2, deletionTimestamp="2023-11-14T22:14:00Z"), "Running", "Running")
    lines = describe([seen(make_job(conditions=("Failed",))), leaving], None, BORN_S)
    assert lines[0].startswith("LoraFlow/17, train: being deleted, attempt 2")
    assert "  attempt 1  failed" in lines
    assert leaving.is_over


def test_a_rank_knows_its_pod_and_whether_that_has_a_log() -> None:
    job = seen(FIRST, "Running", "Pending")
    assert job.snapshot.phase is Phase.STARTING
    assert [job.pod(rank)[-1] for rank in range(4)] == ["0", "0", "1", "1"]
    assert (job.has_log(1), job.has_log(2)) == (True, False)


def test_each_rank_gets_its_own_lines_of_a_nodes_log() -> None:
    log = ["of rank 2", "[rank 3] of rank 3", "[other] of rank 2"]
    assert list(lines_of_rank(log, 2, 2)) == ["of rank 2", "[other] of rank 2"]
    assert list(lines_of_rank(log, 3, 2)) == ["of rank 3"]
