"""`logs` of made-up pods and run directories, once and with --follow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from steps.cli.logs import cluster_log
from steps.cli.view.cluster_jobs import SeenJob, see_all
from steps.cli.view.log_source import follow_file, follow_pods, worded
from steps.cli.view.place import Place
from steps.errors import ClusterError
from steps.protocol.events import PREFIX, Event
from steps.protocol.rundir import TrainDir
from tests.cli.cli_harness import call, make_log
from tests.shared.cluster_objects import NAME, FakeCluster, event_lines, make_job, make_pod, running

HERE = Place(Path("/nowhere"), None)


def test_the_log_of_a_rank_comes_from_its_nodes_pod() -> None:
    cluster = running()
    cluster.logs[f"{NAME}-worker-1"] = ["of rank 2", "[rank 3] of rank 3"]
    assert cluster_log(cluster, HERE, "17", 3, 10, follow=False) == ["of rank 3"]  # type: ignore[arg-type]
    assert cluster_log(cluster, HERE, "17", 2, 10, follow=False) == ["of rank 2"]  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="has ranks 0 to 3, got --rank 4"):
        cluster_log(cluster, HERE, "17", 4, 10, follow=False)  # type: ignore[arg-type]


def test_a_pod_that_has_not_begun_says_why() -> None:
    cluster = FakeCluster([make_job(conditions=("Created",))], warnings={NAME: "exceeded quota"})
    with pytest.raises(
        ClusterError, match=f"pod {NAME}-worker-0 has no log: the job is starting. FailedCreatePod: exceeded"
    ):
        cluster_log(cluster, HERE, "17", 0, 10, follow=False)  # type: ignore[arg-type]


def test_the_log_of_an_ended_job_is_read_from_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / "train-x"
    make_log(folder, "one", "two", attempt=2)
    cluster = FakeCluster([make_job(directory=str(folder), conditions=("Failed",))])
    assert cluster_log(cluster, HERE, "17", 0, 1, follow=False) == ["two"]  # type: ignore[arg-type]


def test_logs_of_a_local_run_and_the_words_of_its_errors(tmp_path: Path) -> None:
    make_log(tmp_path / "LoraFlow" / "17" / "train-x", "one", "two", "three")
    assert call("logs", "17", "--root", tmp_path, "--lines", "2").output == "two\nthree\n"
    assert call("logs", "LoraFlow/17", "--root", tmp_path, "--lines", "1", "-f").output == "three\n"
    silent = PREFIX + Event("checkpoint_begin", 1.0, 1, 2).to_line()
    make_log(tmp_path / "LoraFlow" / "18" / "train-x", "one", *event_lines(3), silent, silent)
    shown = call("logs", "18", "--root", tmp_path, "--lines", "2").output.splitlines()
    assert [line.split(" | ")[0] for line in shown] == ["step 2/10", "step 3/10"]
    os.utime(tmp_path / "LoraFlow" / "17" / "train-x", (1, 1))
    assert (
        call("logs", "--root", tmp_path, "--lines", "2").output
        == call("logs", "18", "--root", tmp_path, "--lines", "2").output
    )
    assert "there is no training below" in call("logs", "--root", tmp_path / "none").output
    missing = call("logs", "17", "--root", tmp_path, "--rank", "5")
    assert missing.exit_code == 1
    assert "Storage failed: no rank-5.log in" in missing.output
    assert "there: rank-0.log" in missing.output
    assert f"no run '27' below {tmp_path} (did you mean '17'?)" in call("logs", "27", "--root", tmp_path).output
    assert f"no run 'x' below {tmp_path}; the newest are 17, 18" in call("logs", "x", "--root", tmp_path).output


def test_events_become_sentences_and_stay_as_they_are_with_raw() -> None:
    lines = ["hello", *event_lines(2)]
    assert list(worded(lines, is_raw=True)) == lines
    assert list(worded(lines, is_raw=False)) == [
        "hello",
        "attempt 1: workers started (4 processes)",
        "model loaded: 10 of 1,000 parameters are trained",
        "step 2/10 | loss 0.5000 | 200 tokens/s | 4 s left",
    ]


def test_following_goes_on_into_the_next_attempt_and_ends_with_success() -> None:
    first, second = make_job(), make_job("second-a2", attempt=2, born=60.0, conditions=("Succeeded",))
    cluster = FakeCluster(logs={f"{NAME}-worker-0": ["one"], "second-a2-worker-0": ["two"]})
    looks: list[list[dict[str, Any]]] = [[], [first], [make_job(conditions=("Failed",))], [], [second], [second]]
    notes: list[str] = []

    def newest() -> SeenJob | None:
        jobs = looks.pop(0)
        seen = see_all(jobs, [make_pod(job, 0, "Succeeded") for job in jobs], {})
        return seen[-1] if seen else None

    found = follow_pods(cluster, newest, 0, lines=5, note=notes.append, clock=lambda: 0.0, sleep=lambda _: None)
    assert list(found) == ["one", "two"]
    assert looks == []
    assert notes == [
        "the job is gone: it ended, or the next attempt is about to begin",
        f"attempt 1: pod {NAME}-worker-0",
        "attempt 1 is failed; waiting for another one",
        "the job is gone: it ended, or the next attempt is about to begin",
        "attempt 2: pod second-a2-worker-0",
    ]


def test_following_a_run_that_brings_nothing_more_ends() -> None:
    now = iter(range(0, 10_000, 50))
    notes: list[str] = []
    found = follow_pods(
        FakeCluster(), lambda: None, 0, lines=5, note=notes.append, clock=lambda: next(now), sleep=lambda _: None
    )
    assert list(found) == []
    assert notes[-1].startswith("nothing more came for 31 min 40 s")


def test_following_a_file_reads_on_into_the_next_attempt(tmp_path: Path) -> None:
    path = make_log(tmp_path, "old", "one")
    told: list[str] = []
    looks = 0

    def is_running() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            with path.open("a") as file:
                file.write("two\nthr")
        if looks == 2:
            with path.open("a") as file:
                file.write("ee\n")
        if looks == 3:
            make_log(tmp_path, "four", attempt=2)
        return looks < 5

    lines = follow_file(tmp_path, 0, is_running=is_running, lines=1, note=told.append, sleep=lambda _: None)
    assert list(lines) == ["one", "two", "three", "four"]
    assert told == [f"attempt 2: {TrainDir(tmp_path).attempt(2) / 'rank-0.log'}"]
