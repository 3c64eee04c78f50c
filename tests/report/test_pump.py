"""A sink that raises, hangs or is late loses nothing of the truth, says so once, and never holds up whoever tells."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from steps.job.job import Change
from steps.protocol.events import Event
from steps.report import pump as pumping
from steps.report.reporter import Reporter
from steps.report.sink import ReportError
from tests.report.standin import change, write_events


class Fake:
    """A sink that remembers, and fails as told."""

    def __init__(self, fails: int = 0, every_s: float = 0.02) -> None:
        self.name, self.every_s, self.fails = "fake", every_s, fails
        self.changes: list[Change] = []
        self.events: list[Event] = []
        self.hangs: threading.Event | None = None
        self.closed = 0
        self.calls = 0

    def send(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
        self.calls += 1
        if self.hangs:
            self.hangs.wait(30)
        if self.fails:
            self.fails -= 1
            raise ReportError("answered 503")
        self.changes += changes
        self.events += events

    def close(self) -> None:
        self.closed += 1


def wait_for(condition: Any) -> None:
    until_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_all_attempts_events_arrive_once_and_in_order(tmp_path: Path) -> None:
    sink = Fake()
    reporter = Reporter(tmp_path, [sink])
    write_events(tmp_path, 1, range(1, 4))
    reporter.tell(change("attempt_began"))
    wait_for(lambda: len(sink.events) == 6)
    write_events(tmp_path, 2, range(4, 6))
    reporter.tell(change("finished", 2))
    assert reporter.close() == []
    assert [event.step for event in sink.events if event.kind == "step"] == [1, 2, 3, 4, 5]
    assert [told.kind for told in sink.changes] == ["attempt_began", "finished"]
    assert sink.closed == 1


def test_nothing_runs_before_the_acting_supervisor_tells_something(tmp_path: Path) -> None:
    sink = Fake()
    reporter = Reporter(tmp_path, [sink])
    write_events(tmp_path, 1, range(1, 4))
    time.sleep(0.1)
    assert reporter.close() == []
    assert sink.calls == 0


def test_what_failed_comes_again_whole_and_both_are_said_once(tmp_path: Path) -> None:
    sink = Fake(fails=2)
    reporter = Reporter(tmp_path, [sink])
    write_events(tmp_path, 1, range(1, 4))
    reporter.tell(change("attempt_began"))
    wait_for(lambda: sink.events)
    said = reporter.close()
    assert len(sink.events) == 6
    assert len(said) == 2
    assert said[0].startswith("fake: answered 503; the training goes on without it")
    assert "answers again" in said[1]


def test_a_sink_that_never_works_is_left_alone_and_what_it_missed_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pumping, "REST_S", 30.0)
    sink = Fake(fails=10_000)
    reporter = Reporter(tmp_path, [sink])
    write_events(tmp_path, 1, range(1, 4))
    reporter.tell(change("attempt_began"))
    wait_for(lambda: sink.calls == pumping.FAILURES_BEFORE_REST)
    time.sleep(0.2)
    assert sink.calls == pumping.FAILURES_BEFORE_REST
    said = reporter.close()
    assert said[-1] == "fake was not told the last 7 of what happened; it stays in the run directory"


def test_a_bug_in_a_sink_is_named_and_reaches_nobody(tmp_path: Path) -> None:
    class Broken(Fake):
        def send(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
            raise KeyError("loss")

    reporter = Reporter(tmp_path, [Broken()])
    reporter.tell(change("attempt_began"))
    assert "fake: KeyError: 'loss'" in reporter.close()[0]


def test_a_sink_that_hangs_holds_up_neither_the_teller_nor_the_other_sinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.report.reporter.CLOSE_S", 0.3)
    hanging, healthy = Fake(), Fake()
    hanging.hangs = threading.Event()
    reporter = Reporter(tmp_path, [hanging, healthy])
    write_events(tmp_path, 1, range(1, 4))
    began_s = time.monotonic()
    for number in range(1000):
        reporter.tell(change("attempt_began", number))
    assert time.monotonic() - began_s < 1
    wait_for(lambda: len(healthy.events) == 6)
    said = reporter.close()
    hanging.hangs.set()
    assert said == ["fake did not take the last words in time; training and result are not touched by it"]
    assert len(healthy.changes) == 1000


def test_events_beyond_what_is_held_wait_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumping, "MOST_EVENTS", 6)
    sink = Fake()
    reporter = Reporter(tmp_path, [sink])
    for attempt in (1, 2, 3):
        write_events(tmp_path, attempt, range(1, 4))
    reporter.tell(change("attempt_began"))
    wait_for(lambda: len(sink.events) == 18)
    assert sink.calls >= 3
    reporter.close()
