"""Cancelled during a slow step: the save is waited for, however short the grace period; and what could not be saved is told."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from steps.errors import JobCancelled
from steps.job import cancel
from steps.job.local_jobs import ask_to_stop, cancel_running, running_jobs, time_to_save_s
from steps.job.local_launcher import LocalLauncher
from steps.job.progress import Progress, Work
from steps.job.progress import time_to_save_s as limit_s
from steps.job.snapshot import Reason
from steps.job.supervise import supervise
from steps.protocol.checkpoints import newest_step
from steps.protocol.events import EventTail
from steps.protocol.rundir import TrainDir, read_json, write_json
from steps.settings.config import Settings
from tests.job.job_fakes import Attempt
from tests.job.test_local_launcher import SETTINGS, events_text, play_job, wait_for
from tests.job.test_supervise import Stage


@pytest.mark.parametrize(
    ("durations_s", "save_s", "expected_s"),
    [((), 0.0, 60.0), ((1.0, 2.0), 3.0, 60.0), ((100.0, 300.0), 20.0, 480.0)],
    ids=["nothing is known", "quick", "slow"],
)
def test_workers_get_as_long_as_a_step_and_a_save_take(
    durations_s: tuple[float, ...], save_s: float, expected_s: float
) -> None:
    assert limit_s(Progress(Work.STEP, 0.0, durations_s=durations_s, save_s=save_s), 60.0) == expected_s


@pytest.mark.parametrize(("saves_after_s", "kept"), [(200.0, 5), (10_000.0, 4)], ids=["saved in time", "too slow"])
def test_a_supervisor_waits_for_the_save_of_a_cancelled_training(
    tmp_path: Path, saves_after_s: float, kept: int
) -> None:
    asked_s: list[float] = []

    def script(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
            for step in range(1, 5):
                attempt.events.emit("step", step, seconds=300.0)
            attempt.save(4)
            cancel.request(attempt.job.directory)
        stop = attempt.job.directory.files(attempt.number).stop
        if stop.exists() and read_json(stop).get("reason") == "cancelled":
            asked_s.append(attempt.clock())
            if attempt.clock() - asked_s[0] > saves_after_s:
                attempt.train(5, 5)
                attempt.save(5)
                attempt.end(143, reason=Reason.STOPPED)

    stage = Stage(tmp_path, script, deadlines={"grace_s": 20, "startup_s": 1000})
    with pytest.raises(JobCancelled, match=f"the checkpoint of step {kept} is kept"):
        stage.run()
    assert "cancelled; its workers have 450 s to end their step and save" in stage.notices[0]
    assert stage.clock() - asked_s[0] < 450 + 60
    assert stage.history["verdict"]["kind"] == "cancelled"


def test_a_quick_training_is_ended_as_before(tmp_path: Path) -> None:
    def script(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
            attempt.train(1, 4)
            cancel.request(attempt.job.directory)

    stage = Stage(tmp_path, script)
    with pytest.raises(JobCancelled):
        stage.run()
    assert not stage.job.directory.files(1).stop.exists()
    assert "delete 1 60 after evidence" in stage.launcher.calls


def test_the_agents_of_an_attempt_are_asked_once_and_with_their_own_grace(tmp_path: Path) -> None:
    paths = TrainDir(tmp_path)
    write_json(paths.files(1).agent.plan, {"grace_s": 500})
    assert time_to_save_s(tmp_path, 1) == 500
    assert ask_to_stop(tmp_path, 1, grace_s=500, reason="cancelled")
    assert ask_to_stop(tmp_path, 1, grace_s=5, reason="stopped"), "asked already"
    assert read_json(paths.files(1).stop) == {"grace_s": 500, "reason": "cancelled"}


@pytest.mark.whole
@pytest.mark.parametrize("is_watched", [True, False])
def test_a_step_that_takes_longer_than_the_grace_is_saved_all_the_same(tmp_path: Path, is_watched: bool) -> None:
    """Steps of two seconds, a grace of one."""
    job = play_job(tmp_path, steps=10_000, step_s=2.0)
    settings = Settings.model_validate({**SETTINGS, "deadlines": {"grace_s": 1.0, "startup_s": 60}})
    launcher = LocalLauncher(grace_s=1)
    ended: list[Exception] = []

    def watch_over() -> None:
        try:
            supervise(job, launcher, settings)
        except JobCancelled as error:
            ended.append(error)

    supervisor = threading.Thread(target=watch_over)
    if is_watched:
        supervisor.start()
    else:
        job.directory.path.mkdir(parents=True)
        job.directory.spec.write_text(json.dumps(dict(job.spec)))
        launcher.create(job, 1)
    wait_for(lambda: events_text(job, 1).count('"kind": "step"') > 1)
    (running,) = running_jobs(tmp_path)
    cancel.request(job.directory)
    assert cancel_running(running) == 0
    if is_watched:
        supervisor.join(30)
        assert ended
    done = [event for event in EventTail(job.directory.events(1)).read_new() if event.kind == "step"]
    assert newest_step(job.directory.checkpoints) == done[-1].step
    assert '"stopping"' in events_text(job, 1)
