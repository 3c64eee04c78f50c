"""Two supervisors whose clocks differ, or one clock that was set between them: what is counted is what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from steps.job.job import Outside
from steps.job.supervise import JobResult, supervise
from tests.job.job_fakes import Attempt, FakeClock, Script
from tests.job.test_supervise import Stage, fail_with, succeed

DAY_S = 86400.0


@dataclass
class Host:
    """One machine's clocks beside the true time."""

    time: FakeClock
    boot: str = "a"
    wall_ahead_s: float = 0.0
    started_s: float = 0.0
    """When it was started: its monotonic clock counts from there."""

    def run(self, stage: Stage, *, sleep: Callable[[float], None] | None = None, resumes: bool = False) -> JobResult:
        outside = Outside(
            notice=stage.notices.append,
            clock=lambda: self.time() - self.started_s,
            wall=lambda: self.time() + self.wall_ahead_s,
            sleep=sleep or self.time.sleep,
            boot=lambda: self.boot,
            disk=lambda folder: self.time(),
        )
        return supervise(stage.job, stage.launcher, stage.settings, outside, retry_permanent=resumes)


SECOND = {
    "the same machine": {},
    "its clock set by a month": {"wall_ahead_s": 30 * DAY_S},
    "its clock set back by a month": {"wall_ahead_s": -30 * DAY_S},
    "another machine": {"boot": "b", "started_s": 900.0},
    "another machine, a month ahead": {"boot": "b", "started_s": 900.0, "wall_ahead_s": 30 * DAY_S},
    "another machine, a month behind": {"boot": "b", "started_s": -9e6, "wall_ahead_s": -30 * DAY_S},
}


def second(name: str, stage: Stage) -> Host:
    return Host(stage.clock, **SECOND[name])  # type: ignore[arg-type]


def dies_after(stage: Stage, seconds: float) -> Callable[[float], None]:
    """The sleep of a supervisor that dies then."""
    until_s = stage.clock() + seconds

    def sleep(given: float) -> None:
        stage.clock.sleep(given)
        if stage.clock() > until_s:
            raise ZeroDivisionError

    return sleep


def trains_for(seconds: float) -> Script:
    """A step a second; its events are on the true clock."""

    def script(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
            begun_s.append(attempt.clock())
        if look and attempt.clock() - begun_s[0] >= seconds:
            attempt.train(1, 10)
            attempt.finish()

    begun_s: list[float] = []
    return script


def sums_up(account: dict[str, object]) -> bool:
    pieces = [value for key, value in account.items() if key.endswith("_s") and key != "total_s"]
    return abs(sum(pieces) - account["total_s"]) < 0.01 and min(pieces) >= 0  # type: ignore[arg-type, type-var, operator]


@pytest.mark.parametrize("name", SECOND)
def test_an_adopted_attempt_is_as_long_as_it_was(tmp_path: Path, name: str) -> None:
    stage = Stage(tmp_path, trains_for(300.0), deadlines={"model_load_s": 5000})
    with pytest.raises(ZeroDivisionError):
        Host(stage.clock).run(stage, sleep=dies_after(stage, 100))
    stage.clock.now_s += 50
    account = second(name, stage).run(stage).account
    assert account["total_s"] == pytest.approx(300, abs=10)
    assert sums_up(account)
    assert stage.history["attempts"][0]["spent_s"] == pytest.approx(250, abs=15), "nobody watched for 50 s"


@pytest.mark.parametrize("name", SECOND)
def test_between_two_attempts_as_much_time_has_passed_as_has(tmp_path: Path, name: str) -> None:
    stage = Stage(tmp_path, fail_with("network", 77, saves=4), succeed)

    def interrupt(seconds: float) -> None:
        stage.clock.sleep(seconds)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Host(stage.clock).run(stage, sleep=interrupt)
    stage.clock.now_s += 7200
    account = second(name, stage).run(stage, resumes=True).account
    assert account["idle_s"] == pytest.approx(7200, abs=10)
    assert account["total_s"] == pytest.approx(7210, abs=20)
    assert sums_up(account)


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("how", ["failed", "finished"])
def test_an_attempt_that_ended_while_nobody_watched_ends_when_its_workers_did(
    tmp_path: Path, name: str, how: str
) -> None:
    def ends_later(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
        if attempt.clock() > 8 * DAY_S and not attempt.done:
            attempt.clock.now_s, now_s = ended_s, attempt.clock.now_s
            attempt.train(1, 4)
            attempt.save(4)
            attempt.finish() if how == "finished" else attempt.record("network", 77, step=4)
            attempt.clock.now_s, attempt.done = now_s, 4

    stage = Stage(tmp_path, ends_later, succeed, deadlines={"model_load_s": 5000}, prices={"node_hour": 10.0})
    ended_s = stage.clock() + 150
    with pytest.raises(ZeroDivisionError):
        Host(stage.clock).run(stage, sleep=dies_after(stage, 100))
    stage.clock.now_s += 8 * DAY_S
    stage.launcher.read(stage.job, 1)  # what happened meanwhile
    account = second(name, stage).run(stage).account
    first = account["per_attempt"][0]
    assert first["total_s"] == pytest.approx(150, abs=15)
    assert account["node_hours"] < 0.1
    assert account["cost"] < 1
    assert account["idle_s"] == pytest.approx(0 if how == "finished" else 8 * DAY_S - 50, abs=15)
    assert sums_up(account)


def test_what_detached_workers_did_alone_counts(tmp_path: Path) -> None:
    def goes_on_alone(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
        if attempt.clock() > 5000 and not attempt.done:
            attempt.train(1, 10)
            attempt.done = 10
        if attempt.clock() > 5100:
            attempt.finish()

    stage = Stage(tmp_path, goes_on_alone, deadlines={"model_load_s": 10_000})
    with pytest.raises(ZeroDivisionError):
        Host(stage.clock).run(stage, sleep=dies_after(stage, 100))
    stage.clock.now_s = 5050.0
    stage.launcher.read(stage.job, 1)  # what they told meanwhile
    Host(stage.clock, boot="b").run(stage)
    assert stage.history["attempts"][0]["spent_s"] == pytest.approx(4100, abs=60)


def test_an_attempt_that_was_named_and_never_made_begins_when_it_is_made(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed)
    create = stage.launcher.create

    def die(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    stage.launcher.create = die  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        Host(stage.clock).run(stage)
    stage.launcher.create = create  # type: ignore[method-assign]
    stage.clock.now_s += DAY_S
    assert Host(stage.clock).run(stage).account["total_s"] < 20
