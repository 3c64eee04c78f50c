"""No silence of more than ten seconds, and no flood of words where something takes hours."""

from __future__ import annotations

import time

import pytest

from steps.flow import heartbeat
from steps.flow.heartbeat import Heartbeat
from steps.flow.terminal import say


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    said_s = [0.0]

    def tell(line: str) -> None:
        said_s[0] = clock.now_s
        print(line)

    monkeypatch.setattr(heartbeat, "said_at_s", lambda: said_s[0])
    monkeypatch.setattr(heartbeat, "say", tell)
    return clock


def lines_of(seconds: int, clock: Clock, beat: Heartbeat, capsys: pytest.CaptureFixture[str]) -> list[str]:
    for _ in range(seconds):
        clock.now_s += 1
        beat.look()
    return capsys.readouterr().out.splitlines()


def test_a_long_silence_is_told_and_the_longer_it_takes_the_rarer(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    beat = Heartbeat(lambda: "loading the model", clock=clock)
    beat.look()
    assert lines_of(30, clock, beat, capsys) == [f"loading the model: {seconds} s so far" for seconds in (8, 16, 24)]
    assert 20 < len(lines_of(3600, clock, beat, capsys)) < 50


def test_time_is_counted_from_when_it_began_and_nothing_is_said_of_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    now = ["a"]
    beat = Heartbeat(lambda: now[0], clock=clock)
    lines_of(5, clock, beat, capsys)
    now[0] = "b"
    assert lines_of(10, clock, beat, capsys) == ["b: 8 s so far"]
    heartbeat.say("done")
    capsys.readouterr()
    assert lines_of(10, clock, beat, capsys) == ["b: 8 s so far"]
    now[0] = ""
    assert lines_of(60, clock, beat, capsys) == []


def test_what_is_said_otherwise_counts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "QUIET_S", 0.3)
    monkeypatch.setattr(heartbeat, "LOOK_EVERY_S", 0.05)
    with Heartbeat(lambda: "waiting"):
        until_s = time.monotonic() + 0.6
        while time.monotonic() < until_s:
            say("busy")
            time.sleep(0.05)
        assert "waiting" not in capsys.readouterr().out
        time.sleep(0.6)
    assert "waiting: 1 s so far" in capsys.readouterr().out
    time.sleep(0.5)
    assert capsys.readouterr().out == ""
