"""Trackers get every attempt's numbers, and whatever happens to them, the job does not notice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from steps.flow.trackers import METRICS, WAITING, Tracker, Write, open_trackers
from steps.protocol.events import Event

STEP = {"loss": 2.5, "grad_norm": 0.5, "lr": 1e-3, "tokens_per_s": 100.0, "seconds": 1.0}


def step(number: int, attempt: int = 1) -> Event:
    return Event("step", 0.0, attempt, number, dict(STEP))


def test_tensorboard_shows_all_attempts_in_one_place(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    notices: list[str] = []
    (tracker,) = open_trackers(["tensorboard"], folder=tmp_path, title="demo", key="abc", notice=notices.append)
    for event in (step(1), step(2), Event("validation", 0.0, 1, 2, {"loss": 3.5, "best": 3.5}), step(3, attempt=2)):
        tracker.observe(event)
    tracker.close()
    assert notices == []
    shown = event_accumulator.EventAccumulator(str(tmp_path / "runs"))
    shown.Reload()
    assert set(shown.Tags()["tensors"]) == set(METRICS.values())
    assert [event.step for event in shown.Tensors("train/loss")] == [1, 2, 3]
    (held_out,) = shown.Tensors("eval/loss")
    assert held_out.tensor_proto.float_val == [3.5]


def test_events_without_numbers_are_none_of_theirs() -> None:
    seen: list[tuple[Mapping[str, float], int]] = []
    notices: list[str] = []

    @contextlib.contextmanager
    def opener() -> Iterator[Write]:
        yield lambda metrics, number: seen.append((metrics, number))

    tracker = Tracker("mine", opener, notices.append)
    tracker.observe(Event("started", 0.0, 1, 0, {"of": 10}))
    tracker.observe(Event("validation", 0.0, 1, 5, {"loss": "nan"}))
    tracker.close()
    assert [number for _, number in seen] == [5]
    assert notices == []


def test_one_that_fails_is_named_once_and_heard_no_more() -> None:
    notices: list[str] = []
    failed = threading.Event()

    @contextlib.contextmanager
    def opener() -> Iterator[Write]:
        failed.set()
        raise ConnectionError("no route to the server")
        yield lambda metrics, number: None

    tracker = Tracker("mine", opener, notices.append)
    assert failed.wait(10)
    for number in range(3):
        tracker.observe(step(number))
    tracker.close()
    (said,) = notices
    assert said.startswith("mine gets no more numbers (ConnectionError: no route to the server)")


def test_one_that_hangs_neither_blocks_nor_outlives_its_patience() -> None:
    notices: list[str] = []
    woken = threading.Event()

    @contextlib.contextmanager
    def opener() -> Iterator[Write]:
        woken.wait(60)
        yield lambda metrics, number: None

    tracker = Tracker("mine", opener, notices.append)
    for number in range(WAITING + 10):
        tracker.observe(step(number))
    tracker.close(patience_s=0.05)
    woken.set()
    assert notices[0].startswith("mine did not take the last numbers within")
