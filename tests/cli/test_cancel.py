"""`cancel` and `retry`: what is ended, what is waited for, what is kept, and what to type next."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from steps.cli.cancel import wait_for_job
from steps.cli.main import main
from steps.cli.retry import reset_retry_count
from steps.cli.view.cluster_jobs import see_all
from steps.cli.view.ending import cancel_jobs, kept_in, wait_until_heard
from steps.errors import ClusterError, JobCancelled, StorageError
from steps.job import history as memory
from steps.job.agent.in_use import in_use
from steps.job.cancel import clear, is_requested, request, require_wanted, take_over
from steps.job.history import Attempt, History, Verdict
from steps.plain_text import command
from steps.protocol.checkpoints import Writer, checkpoint_path, commit
from steps.protocol.events import EventWriter
from steps.protocol.rundir import RunDir, TrainDir, held_lock
from tests.shared.cluster_objects import FakeCluster, make_job, make_pod


def call(*words: str | Path, given: str = "") -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words], input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def make_training(root: Path, run: str = "17", *, verdict: Verdict | None = None) -> TrainDir:
    """A training with one failed attempt and the checkpoint of step 40."""
    train = TrainDir(root / "LoraFlow" / run / "train-abc")
    path = checkpoint_path(train.checkpoints, 40, Writer(1, 1))
    path.mkdir(parents=True)
    (path / "state").write_text("x")
    commit(path, step=40, writer=Writer(1, 1), identity="abc", layout={})
    attempts = (Attempt(1, 10.0, finished_s=20.0, failure_class="user", message="it broke"),)
    memory.save(train.history, History("abc", attempts, verdict=verdict))
    return train


PERMANENT = Verdict("permanent", "user", 1, "tiny-orders: attempt 1 failed, user: it broke\nmore")


def cancel_one(cluster: FakeCluster, job: dict[str, Any]) -> list[str]:
    said: list[str] = []
    now = iter(range(0, 100_000, 10))
    jobs = see_all([job], cluster.pods, {})
    cancel_jobs(cluster, jobs, say=said.append, clock=lambda: next(now), sleep=lambda _: None)  # type: ignore[arg-type]
    return said


def test_cancel_deletes_and_waits_until_the_pods_are_gone(tmp_path: Path) -> None:
    train = make_training(tmp_path)
    job = make_job(directory=str(train.path))
    name = job["metadata"]["name"]
    cluster = FakeCluster([job], [make_pod(job, 0), make_pod(job, 1)], looks_until_gone=3)
    assert cancel_one(cluster, job) == [
        f"ns/{name}: deletion asked for; the workers have 90 s to save",
        f"{name} and its pods are gone",
        f"kept: the checkpoint of step 40; logs and events; in {train.path}",
    ]
    assert cluster.deleted == [name]


def test_cancel_names_the_pods_that_do_not_go() -> None:
    job = make_job()
    cluster = FakeCluster([job], [make_pod(job, 1)], looks_until_gone=-1)
    with pytest.raises(
        ClusterError, match=r"worker-1 on node-2 did not go within 150 s.*kubectl -n ns delete pod --force"
    ):
        cancel_one(cluster, job)


def test_what_is_kept_is_told_as_far_as_it_can_be_seen(tmp_path: Path) -> None:
    assert kept_in(Path("/fsx/x")) == "kept: all that was saved, in /fsx/x (not visible from here)"
    assert kept_in(tmp_path) == f"kept: no checkpoint was complete yet; logs and events; in {tmp_path}"


def test_cancel_of_a_local_run_that_does_not_run_says_so(tmp_path: Path) -> None:
    train = make_training(tmp_path, verdict=PERMANENT)
    assert "nothing of run 17 runs just now" in call("cancel", "17", "--root", tmp_path).output
    assert not is_requested(train), "it was given up: nobody would begin by himself"


def test_cancel_while_the_launcher_is_started_anew_is_remembered(tmp_path: Path) -> None:
    train = make_training(tmp_path)
    said = call("cancel", "17", "--root", tmp_path).output
    goes_on = f"`{command('resume', 17)}` goes on"
    assert f"train-abc: a launcher that starts by itself begins no attempt; {goes_on}; kept: the checkpoint" in said
    assert is_requested(train)
    assert "cancelled by a person, step" in call("status", "17", "--root", tmp_path).output


def test_cancel_asks_every_launcher_of_the_run(tmp_path: Path) -> None:
    train = make_training(tmp_path)
    compiling = TrainDir(train.path.with_name("compile-xyz"))
    compiling.path.mkdir()
    compiling.lock.touch()
    call("cancel", "17", "--root", tmp_path)
    assert is_requested(train)
    assert is_requested(compiling)


def test_cancel_before_the_training_is_remembered_by_its_flow(tmp_path: Path) -> None:
    run = tmp_path / "LoraFlow" / "17"
    (run / "prepared-x").mkdir(parents=True)
    with in_use(run, "prepare", flow="17"):
        said = call("cancel", "17", "--root", tmp_path).output
    assert f"prepare (process {os.getpid()} on " in said
    assert "its flow begins nothing after that" in said
    train = TrainDir(run / "train-abc")
    assert not take_over(RunDir(run), "18", train), "a flow that was started later is wanted"
    assert take_over(RunDir(run), "17", train)
    assert is_requested(train), "its supervisor remembers it"
    assert not take_over(RunDir(run), "17", train)


def test_a_flow_that_was_cancelled_begins_no_further_step_until_a_person_resumes(tmp_path: Path) -> None:
    run = make_training(tmp_path).path.parent
    with in_use(run, "merge", flow="17"):
        call("cancel", "17", "--root", tmp_path)
    require_wanted(RunDir(run), "18", "evaluate")
    with pytest.raises(
        JobCancelled,
        match=r"before evaluate began; what was made is kept .*hyperpod-lora resume 17` goes on",
    ):
        require_wanted(RunDir(run), "17", "evaluate")
    require_wanted(RunDir(run), "17", "evaluate")


def without_permission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: FakeCluster) -> Path:
    """A cluster's Config; its run directories are another user's."""

    def refuse(directory: TrainDir) -> None:
        raise StorageError(f"writing {directory.cancel}: no permission")

    storage = {"root": str(tmp_path / "runs"), "cache": str(tmp_path)}
    config = tmp_path / "cluster.yaml"
    raw = {
        "launcher": {"kind": "pytorchjob"},
        "cluster": {"namespace": "ns", "image": "i", "mount_path": str(tmp_path)},
        "storage": storage,
    }
    config.write_text(yaml.safe_dump(raw))
    monkeypatch.setattr("steps.cli.cancel.open_cluster", lambda settings: cluster)
    monkeypatch.setattr("steps.job.cancel.request", refuse)
    return config


@pytest.mark.parametrize("given", ["17", "LoraFlow/17", "its folder"])
def test_where_the_wish_cannot_be_left_the_job_is_deleted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    train = make_training(tmp_path / "runs")
    job = make_job(run="LoraFlow/17", directory=str(train.path))
    cluster = FakeCluster([job], [make_pod(job, 0)], looks_until_gone=1)
    config = without_permission(monkeypatch, tmp_path, cluster)
    run = train.path.parent if given == "its folder" else given
    said = call("cancel", run, "--yes", "--config", config).output
    assert "the request cannot be left there (writing " in said
    assert cluster.deleted == [job["metadata"]["name"]]
    assert "and its pods are gone" in said


def test_where_neither_a_wish_nor_a_job_can_end_it_that_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = make_training(tmp_path / "runs")
    config = without_permission(monkeypatch, tmp_path, FakeCluster())
    with held_lock(train.lock, timeout_s=1.0, what="the test"):
        result = call("cancel", "17", "--yes", "--config", config)
    assert result.exit_code == 1
    assert "run 17 goes on: it has no job just now that could be deleted; say the same as its user" in result.output
    assert "begins no further attempt" not in result.output


def test_steps_that_could_not_be_saved_are_told(tmp_path: Path) -> None:
    train = make_training(tmp_path)
    events = EventWriter(train.events(1), attempt=1, stream=io.StringIO())
    events.emit("started", 36, of=100)
    events.emit("step", 40)
    assert "could not be saved" not in kept_in(train.path)
    events.emit("step", 43)
    assert kept_in(train.path) == (
        "kept: the checkpoint of step 40; steps 41 to 43 could not be saved within the grace period (deadlines.grace_s), and are "
        f"done again; logs and events; in {train.path}"
    )


@contextmanager
def supervised(train: TrainDir, *, answers: bool = True) -> Iterator[None]:
    """A supervisor acts, and is between two attempts."""

    def answer() -> None:
        while not over.wait(0.05):
            if answers and is_requested(train):
                clear(train)

    over = threading.Event()
    with held_lock(train.lock, timeout_s=1.0, what="the test"):
        thread = threading.Thread(target=answer)
        thread.start()
        yield
        over.set()
        thread.join()


def test_cancel_between_two_attempts_is_heard_by_the_supervisor(tmp_path: Path) -> None:
    train = make_training(tmp_path)
    with supervised(train):
        asked = call("cancel", "17", "--root", tmp_path, given="y\n")
    assert "End run 17, which is between two attempts?" in asked.output
    assert "train-abc: its launcher begins no further attempt" in asked.output
    assert "kept: the checkpoint of step 40" in asked.output
    assert asked.exit_code == 0


def test_cancel_that_is_declined_leaves_no_wish(tmp_path: Path) -> None:
    train = make_training(tmp_path)
    with supervised(train, answers=False):
        assert call("cancel", "17", "--root", tmp_path, given="n\n").exit_code == 1
        assert not is_requested(train)


def test_cancel_says_so_when_the_supervisor_does_not_answer(tmp_path: Path) -> None:
    train = make_training(tmp_path)
    request(train)
    said: list[str] = []
    now = iter(range(0, 100_000, 50))
    wait_until_heard([train.path], say=said.append, clock=lambda: next(now), sleep=lambda _: None)
    assert "its launcher has not answered within 180 s; it begins no other attempt before it has" in said[0]
    assert is_requested(train)


def test_cancel_from_a_laptop_can_wait_for_the_next_job() -> None:
    job = make_job()
    cluster = FakeCluster()

    def appear(_: float) -> None:
        cluster.jobs.append(job)

    found = wait_for_job(cluster, "17", wait_s=60, sleep=appear)  # type: ignore[arg-type]
    assert [item.name for item in found] == [job["metadata"]["name"]]
    with pytest.raises(ClusterError, match="between two attempts there is none either"):
        wait_for_job(FakeCluster(), "17", wait_s=0)  # type: ignore[arg-type]


def test_retry_clears_the_verdict_and_says_what_to_type(tmp_path: Path) -> None:
    train = make_training(tmp_path, verdict=PERMANENT)
    result = call("retry", "17", "--root", tmp_path)
    assert result.exit_code == 0
    assert "train-abc: retry count reset (permanent: tiny-orders: attempt 1 failed, user: it broke)" in result.output
    assert "it goes on from step 40" in result.output
    assert f"to go on: {command('resume', 17)}" in result.output
    history = memory.load(train.history, "abc")
    assert (history.verdict, history.not_counted, len(history.attempts)) == (None, 1, 1)
    assert "it was not given up, nothing to reset" in call("retry", "17", "--root", tmp_path).output


def test_retry_leaves_a_training_with_a_supervisor_alone(tmp_path: Path) -> None:
    train = make_training(tmp_path, verdict=PERMANENT)
    with (
        held_lock(train.lock, timeout_s=1.0, what="the test"),
        pytest.raises(StorageError, match="a supervisor watches over it"),
    ):
        reset_retry_count(train.path)
    assert memory.load(train.history, "abc").verdict == PERMANENT


def test_retry_from_a_laptop_says_where_and_how(tmp_path: Path) -> None:
    cluster = {"namespace": "ns", "image": "i"}
    config = tmp_path / "cluster.yaml"
    storage = {"root": "/fsx/runs", "cache": "/fsx/cache"}
    config.write_text(yaml.safe_dump({"launcher": {"kind": "pytorchjob"}, "cluster": cluster, "storage": storage}))
    result = call("retry", "LoraFlow/17", "--config", config)
    assert result.exit_code == 1
    assert "below /fsx/runs, which this machine does not see" in result.output
    assert "a pod with the claim fsx-claim" in result.output
    assert f"go on from here with `{command('resume', 17)}`" in result.output
    assert "If it ran on a cluster, give its --config" in call("retry", "17", "--root", tmp_path / "none").output
