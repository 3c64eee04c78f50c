"""The local launcher for real: keeper, torchrun and workers, killed one after the other. Only torchrun needs torch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from steps.errors import JobCancelled, JobRetriesExhausted
from steps.job.agent import processes
from steps.job.agent.commands import workers_command
from steps.job.job import Job
from steps.job.local_jobs import cancel_running, describe, end_running, running_jobs, train_directories
from steps.job.local_launcher import LocalLauncher
from steps.job.snapshot import Phase, Reason
from steps.job.supervise import Outside, supervise
from steps.protocol.events import Event
from steps.protocol.rundir import TrainDir, read_json
from steps.protocol.train_dir import AgentDir, AttemptDir
from steps.settings.config import Settings

HERE = Path(__file__).parent
SETTINGS = {"retry": {"delay_s": 0.0}, "deadlines": {"grace_s": 5.0}}


def play_job(folder: Path, *, world: int = 1, steps: int = 6, step_s: float = 0.05, **acts: dict[str, Any]) -> Job:
    play = {"steps": steps, "step_s": step_s, "acts": {name.lstrip("a"): act for name, act in acts.items()}}
    directory = TrainDir(folder / "Flow" / "1" / "train-play")
    environment = {"PYTHONPATH": str(HERE)}
    return Job("play_worker", {"play": play}, directory, "play", steps, world, environment=environment, label="play")


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    until_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < until_s, "it never came true"
        time.sleep(0.05)
    return found


def events_text(job: Job, attempt: int) -> str:
    path = job.directory.events(attempt)
    return path.read_text() if path.exists() else ""


@pytest.fixture(autouse=True)
def _nothing_is_left_alive(tmp_path: Path) -> Iterator[None]:
    yield
    until_s = time.monotonic() + 10  # a keeper has written its last word a moment before it is gone
    while (left := processes.find_marked(str(tmp_path))) and time.monotonic() < until_s:
        time.sleep(0.05)
    for pid in left:
        processes.send(pid, signal.SIGKILL)
    assert left == {}


def pids_of(job: Job, attempt: int) -> dict[str, int]:
    """keeper, torchrun, 0, 1, …"""
    folder = job.directory.attempt(attempt)
    keeper = int(read_json(folder / "keeper-state.json")["pid"])
    ranks = {path.stem.removeprefix("rank-"): int(read_json(path)["pid"]) for path in folder.glob("rank-*.json")}
    return {"keeper": keeper, "torchrun": psutil.Process(ranks["0"]).ppid(), **ranks}


@pytest.mark.slow
def test_every_process_of_a_job_can_be_killed_and_the_training_goes_on(tmp_path: Path) -> None:
    job = play_job(tmp_path, world=2, steps=40, step_s=0.1)
    targets = {1: "1", 2: "torchrun", 3: "keeper"}
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        if event.kind == "checkpoint" and event.attempt in targets:
            pid = pids_of(job, event.attempt)[targets.pop(event.attempt)]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    notices: list[str] = []
    result = supervise(
        job,
        LocalLauncher(grace_s=5),
        Settings.model_validate(SETTINGS),
        Outside(observe=kill_once, notice=notices.append),
    )
    assert len(killed) == 3
    assert "rank 1" in notices[0]
    assert "SIGKILL" in notices[0]
    assert "torchrun was killed by SIGKILL" in notices[1]
    assert "process that watched over the workers was killed" in notices[2]
    assert result.attempts == 4
    assert (result.result_dir / "adapter.txt").read_text() == "learned"
    history = read_json(job.directory.history)["attempts"]
    wall_s = history[-1]["finished_s"] - history[0]["created_s"]
    assert result.account["total_s"] == pytest.approx(wall_s, rel=0.02)
    resumed = [event for number in (2, 3, 4) for event in events_text(job, number).splitlines() if "started" in event]
    assert len(resumed) == 3


SUPERVISOR = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.job.test_local_launcher import SETTINGS, play_job
from steps.settings.config import Settings
from steps.job.local_launcher import LocalLauncher
from steps.job.supervise import Outside, supervise
supervise(play_job(Path({folder!r}), steps=60), LocalLauncher(grace_s=5), Settings.model_validate(SETTINGS))
"""


@pytest.mark.whole
def test_workers_outlive_a_killed_supervisor_and_are_adopted(tmp_path: Path) -> None:
    job = play_job(tmp_path, steps=60)
    text = SUPERVISOR.format(root=str(HERE.parent.parent), folder=str(tmp_path))
    supervisor = subprocess.Popen([sys.executable, "-c", text], start_new_session=True)
    wait_for(lambda: '"step"' in events_text(job, 1))
    [running] = running_jobs(tmp_path)
    assert (running.directory, running.attempt, running.is_watched) == (job.directory.path.resolve(), 1, True)
    os.killpg(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    before = pids_of(job, 1)
    assert not running_jobs(tmp_path)[0].is_watched
    assert describe(job.directory.path)["state"] == "running"
    notices: list[str] = []
    seen: list[Event] = []
    result = supervise(
        job,
        LocalLauncher(grace_s=5),
        Settings.model_validate(SETTINGS),
        Outside(observe=seen.append, notice=notices.append),
    )
    assert "still running; watching over it" in notices[0]
    assert result.attempts == 1
    assert seen[0].data["pid"] == before["0"]
    assert [event.step for event in seen if event.kind in ("first_step", "step")] == list(range(1, 61))
    told = describe(job.directory.path)
    assert (told["state"], told["step"], told["of"], told["pids"]) == ("finished", 60, 60, [])
    assert told["attempts"][0]["class"] == "succeeded"
    assert train_directories(tmp_path) == [job.directory.path]


@pytest.mark.whole
def test_hanging_worker_leaves_its_stack_and_is_killed_though_it_is_deaf(tmp_path: Path) -> None:
    job = play_job(tmp_path, steps=6, a1={"step": 4, "act": "deaf"})
    limits = {"deadlines": {"step_gap_s": 2.0, "grace_s": 1.0}, "retry": {"max_without_progress": 1, "max_attempts": 1}}
    with pytest.raises(JobRetriesExhausted, match="hang after step 3") as caught:
        supervise(job, LocalLauncher(grace_s=1), Settings.model_validate(limits))
    assert caught.value.failure_class == "hang"
    assert "sleep_for_ever" in (job.directory.attempt(1) / "evidence" / "stack-0.txt").read_text()


@pytest.mark.whole
def test_workers_without_a_supervisor_end_with_their_lease(tmp_path: Path) -> None:
    job = play_job(tmp_path, steps=10_000)
    launcher = LocalLauncher(grace_s=5, lease_s=3)
    job.directory.path.mkdir(parents=True)
    job.directory.spec.write_text(__import__("json").dumps(dict(job.spec)))
    launcher.create(job, 1)
    launcher.create(job, 1)
    lease = job.directory.attempt(1) / "lease"
    for counter in range(1000):
        lease.write_text(str(counter))
        if '"checkpoint"' in events_text(job, 1):
            break
        time.sleep(0.1)
    assert launcher.read(job, 1).phase is Phase.RUNNING
    snapshot = wait_for(lambda: found if (found := launcher.read(job, 1)).is_over else None)
    assert (snapshot.phase, snapshot.reason) == (Phase.FAILED, Reason.LEASE)
    assert '"stopping"' in events_text(job, 1)
    assert snapshot.workers[0].exit_code == 143
    assert "step" in launcher.logs(job, 1, 0)


def test_a_cancelled_job_saves_and_its_supervisor_starts_no_other_attempt(tmp_path: Path) -> None:
    job = play_job(tmp_path, steps=10_000)
    ended: list[Exception] = []

    def watch_over() -> None:
        try:
            supervise(job, LocalLauncher(grace_s=5), Settings.model_validate(SETTINGS))
        except JobCancelled as error:
            ended.append(error)

    supervisor = threading.Thread(target=watch_over)
    supervisor.start()
    wait_for(lambda: '"checkpoint"' in events_text(job, 1))
    [running] = running_jobs(tmp_path)
    assert running.is_watched
    assert cancel_running(running) == 0
    supervisor.join(30)
    assert "somebody cancelled or deleted it" in str(ended[0])
    assert '"stopping"' in events_text(job, 1)
    assert not job.directory.attempt(2).exists()


@pytest.mark.slow
def test_stopped_process_is_ended_too(tmp_path: Path) -> None:
    job = play_job(tmp_path, steps=10_000)
    launcher = LocalLauncher(grace_s=1)
    job.directory.path.mkdir(parents=True)
    job.directory.spec.write_text(__import__("json").dumps(dict(job.spec)))
    launcher.create(job, 1)
    wait_for(lambda: '"step"' in events_text(job, 1))
    os.kill(pids_of(job, 1)["0"], signal.SIGSTOP)
    [running] = running_jobs(tmp_path)
    end_running(running)
    snapshot = launcher.read(job, 1)
    assert (snapshot.phase, snapshot.remaining) == (Phase.FAILED, 0)


def test_attempt_of_an_earlier_boot_is_known_to_be_dead(tmp_path: Path) -> None:
    job = play_job(tmp_path)
    folder = job.directory.attempt(1)
    folder.mkdir(parents=True)
    (folder / "keeper.json").write_text("{}")
    (folder / "keeper-state.json").write_text('{"pid": 1, "start": 1, "boot": "another"}')
    snapshot = LocalLauncher().read(job, 1)
    assert (snapshot.phase, snapshot.reason, snapshot.remaining) == (Phase.FAILED, Reason.NODE, 0)
    assert LocalLauncher().read(job, 2).phase is Phase.GONE
    assert LocalLauncher().logs(job, 1, 0) == ""


@pytest.fixture
def usual_ports_taken() -> Iterator[None]:
    """Somebody else's training listens where torch does if nobody says otherwise."""
    with contextlib.ExitStack() as stack:
        for port in (29400, 29500):
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # then it is taken already
                listener.bind(("127.0.0.1", port))
                listener.listen()
        yield


@pytest.mark.whole
@pytest.mark.usefixtures("usual_ports_taken")
def test_a_wrapper_runs_torchrun_and_has_the_last_word_whatever_ports_are_in_use(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    job = play_job(tmp_path, world=2, steps=2)
    job = replace(job, wrapper="play_wrapper", environment={**job.environment, "WRAPPER_NOTES": str(notes)})
    result = supervise(job, LocalLauncher(grace_s=5.0), Settings.model_validate(SETTINGS))
    assert result.step == 2
    assert notes.read_text().startswith("torchrun ended with 0: ")
    assert "-m torch.distributed.run" in notes.read_text()


def test_an_only_rank_needs_no_torchrun_and_what_killed_it_is_told(tmp_path: Path) -> None:
    job = play_job(tmp_path, steps=3, a1={"step": 2, "act": "crash"})
    notices: list[str] = []
    parents: list[str] = []

    def look(event: Event) -> None:
        if event.kind == "started":
            parents.append(" ".join(psutil.Process(psutil.Process(int(event.data["pid"])).ppid()).cmdline()))

    outside = Outside(observe=look, notice=notices.append)
    result = supervise(job, LocalLauncher(grace_s=5), Settings.model_validate(SETTINGS), outside)
    assert (result.step, result.attempts) == (3, 2)
    assert "rank 0" in notices[0]
    assert "SIGKILL" in notices[0]
    assert "torchrun" not in notices[0]
    assert "steps.job.agent.agent" in parents[0]


@pytest.mark.parametrize(
    ("processes", "needs", "command"), [(1, True, "torch"), (2, False, "torch"), (1, False, "rank")]
)
def test_torchrun_starts_several_ranks_and_those_that_need_it(
    tmp_path: Path, processes: int, needs: bool, command: str
) -> None:
    plan = {"module": "m", "spec": "s", "attempt": 1, "processes": processes, "alone": processes == 1 and not needs}
    words = workers_command(plan, AgentDir(tmp_path), AttemptDir(tmp_path))
    assert ("torch.distributed.run" in words) == (command == "torch")
    assert words[-6:] == [str(tmp_path), str(tmp_path), "m", "s", "--attempt", "1"]


def test_a_rank_that_the_neuron_runtime_aborts_speaks_through_its_log(tmp_path: Path) -> None:
    job = play_job(tmp_path, steps=6, a1={"step": 2, "act": "abort NRT_EXEC_HW_ERR_NC_UE"})
    settings = Settings.model_validate({**SETTINGS, "retry": {"max_attempts": 1}})
    with pytest.raises(JobRetriesExhausted, match="NRT_EXEC_HW_ERR_NC_UE"):
        supervise(job, LocalLauncher(grace_s=5.0), settings)
    assert read_json(job.directory.attempt(1) / "failure-00000.json")["failure_class"] == "accelerator"
