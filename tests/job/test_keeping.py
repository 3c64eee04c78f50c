"""The small parts around a job: what the agent reads, what is published, what a training's story looks like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps.errors import StorageError
from steps.job.agent import processes
from steps.job.agent.agent import read_or_empty
from steps.job.agent.endings import oom_kills, ranks_of_log
from steps.job.agent.in_use import is_supervised
from steps.job.goodput import account_of
from steps.job.history import Attempt as Told
from steps.job.history import History, Verdict, save
from steps.job.local_jobs import describe, running_jobs, size_of
from steps.job.outcome import publish, result_damage
from steps.settings.config import Prices
from tests.job.job_fakes import Attempt, FakeClock, make_job


def torchrun_event(rank: int | None, code: int | None) -> str:
    metadata = {"global_rank": rank, "metadata": json.dumps({"exit_code": [code]})}
    return json.dumps({"name": "torchelastic.worker.status.FAILED", "source": "WORKER", "metadata": metadata})


def test_exit_codes_are_read_from_torchruns_events_alone() -> None:
    lines = [
        "a warning", torchrun_event(0, None), torchrun_event(1, -9), torchrun_event(None, 1),
        '{"name": "torchelastic.worker.status.X"', '{"name": "torchelastic.worker.status.X", "metadata": {"metadata": "{}"}}',
    ]  # fmt: skip
    assert ranks_of_log("\n".join(lines)) == {1: -9}


def test_memory_kills_are_counted_or_nothing() -> None:
    assert oom_kills() >= 0


def test_file_that_is_not_whole_reads_as_empty(tmp_path: Path) -> None:
    for text in ("", "{", "[1]"):
        (tmp_path / "x").write_text(text)
        assert read_or_empty(tmp_path / "x") == {}


def test_process_is_known_by_more_than_its_number() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        identity = processes.identify(child.pid)
        assert processes.is_alive(identity)
        assert not processes.is_alive({**identity, "start": identity["start"] + 1})
        assert not processes.is_alive({**identity, "boot": "another"})
    finally:
        child.kill()
    assert not stays_alive(identity)
    child.wait()
    assert processes.identify(child.pid)["start"] == 0
    processes.send(child.pid, processes.signal.SIGTERM)


def stays_alive(identity: dict[str, Any]) -> bool:
    """A process that only waits to be reaped counts as dead."""
    return all(processes.is_alive(identity) for _ in range(100_000))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"files": {}}, "names no result", id="no files"),
        pytest.param({"result": None}, "names no result", id="no result"),
        pytest.param({"result": "../elsewhere"}, "lies outside", id="outside"),
        pytest.param({"result": "writers/none"}, "is missing", id="missing"),
        pytest.param({"files": {"adapter": 7}}, "tells no size", id="damaged entry"),
        pytest.param({"files": {"../../spec.json": {"bytes": 7, "sha256": ""}}}, "lies outside", id="a file outside"),
        pytest.param({"files": {"adapter": {"bytes": 8, "sha256": ""}}}, "7 bytes, the worker wrote 8", id="size"),
        pytest.param({"files": {"adapter": {"bytes": 7, "sha256": "0"}}}, "other content", id="content"),
    ],
)
def test_result_that_is_not_whole_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    attempt = Attempt(make_job(tmp_path), 1, FakeClock())
    attempt.finish()
    directory = attempt.job.directory
    told = json.loads(directory.events(1).read_text())
    assert result_damage(directory, told) is None
    assert words in (result_damage(directory, {**told, **change}) or "")


def test_result_that_is_published_stays(tmp_path: Path) -> None:
    attempt = Attempt(make_job(tmp_path), 1, FakeClock())
    attempt.finish()
    directory = attempt.job.directory
    told = json.loads(directory.events(1).read_text())
    publish(directory, told)
    (directory.adapter / "adapter").write_bytes(b"first")
    assert (publish(directory, told) / "adapter").read_bytes() == b"first"


@pytest.mark.parametrize(
    ("verdict", "attempts", "state"),
    [
        (None, (), "new"),
        (None, (Told(1, 10.0, finished_s=30.0, failure_class="preempted", step=4),), "stopped"),
        (None, (Told(1, 10.0),), "stopped"),
        (Verdict("permanent", "user", 1, "words"), (Told(1, 10.0, finished_s=30.0, failure_class="user"),), "failed"),
    ],
)
def test_story_of_a_training(verdict: Verdict | None, attempts: tuple[Told, ...], state: str, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    if attempts:
        Attempt(job, 1, FakeClock(12.0)).start(3)
        save(job.directory.history, History("play", attempts, verdict=verdict))
    told = describe(job.directory.path)
    assert (told["state"], told["is_watched"], told["pids"]) == (state, False, [])
    assert told["verdict"] == ("words" if verdict else "")
    assert (told["bytes"] > 0) == bool(attempts)
    assert json.dumps(told)


def test_damaged_history_is_no_story(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.directory.path.mkdir()
    job.directory.history.write_text('{"schema": "x"}')
    with pytest.raises(StorageError, match=r"`mv .*history\.json .*then `.*hyperpod-lora resume .*`"):
        describe(job.directory.path)


def test_account_skips_attempts_that_left_no_events_and_torn_lines(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    Attempt(job, 2, FakeClock(22.0)).start()
    with job.directory.events(2).open("a") as file:
        file.write('{"kind": "st')
    attempts = (
        Told(1, 0.0, finished_s=10.0, failure_class="node"),
        Told(2, 20.0, finished_s=30.0, failure_class="node", begins_session=True),
    )
    made = account_of(job.directory, History("play", attempts), Prices(), until_s=30.0)
    assert (made["total_s"], made["idle_s"], made["attempts"]) == (30, 10, 2)


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    assert running_jobs(tmp_path) == []
    assert not is_supervised(tmp_path)
    assert size_of(tmp_path / "nowhere") == 0
