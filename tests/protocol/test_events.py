"""The event protocol: what is written is read back, and whatever else stands in a file costs no more than its own line."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steps.protocol.events import KINDS, PREFIX, Event, EventTail, EventWriter, parse_line

STEP = '{"kind": "step", "time_s": 1.5, "attempt": 2, "step": 3, "loss": 0.5}'


class ClosedStream(io.StringIO):
    """A terminal that has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def writer_of(path: Path, **more: Any) -> EventWriter:
    return EventWriter(path, attempt=1, **{"clock": lambda: 1000.0, "stream": io.StringIO(), **more})


def test_events_are_written_to_the_file_and_printed_behind_the_prefix(tmp_path: Path) -> None:
    stream, path = io.StringIO(), tmp_path / "new" / "events.jsonl"
    event = writer_of(path, stream=stream).emit("step", 7, loss=0.25)
    assert event == Event("step", 1000.0, 1, 7, {"loss": 0.25})
    assert path.read_text() == event.to_line() + "\n"
    assert stream.getvalue() == PREFIX + event.to_line() + "\n"
    assert parse_line(stream.getvalue()) == event


def test_without_a_stream_events_go_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EventWriter(tmp_path / "events.jsonl", attempt=1).emit("stopping", 4)
    assert parse_line(capsys.readouterr().out) is not None


def test_a_closed_terminal_does_not_end_a_training(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "events.jsonl", stream=ClosedStream())
    writer.emit("step", 1)
    writer.emit("step", 2)
    assert [event.step for event in EventTail(tmp_path / "events.jsonl").read_new()] == [1, 2]


def test_a_clock_that_goes_backwards_changes_neither_the_order_nor_the_steps(tmp_path: Path) -> None:
    times = iter([1000.0, 400.0, -3.0])
    writer = writer_of(tmp_path / "events.jsonl", clock=lambda: next(times))
    for step in (1, 2, 3):
        writer.emit("step", step)
    found = EventTail(tmp_path / "events.jsonl").read_new()
    assert [(event.step, event.time_s) for event in found] == [(1, 1000.0), (2, 400.0), (3, -3.0)]


def test_binary_lines_between_events_are_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\x00\xff\xfe\n" + STEP.encode() + b"\n\x1b[0m\x80\n\n" + STEP.encode() + b"\n")
    tail = EventTail(path)
    assert [event.step for event in tail.read_new()] == [3, 3]
    assert tail.foreign == 3


def test_a_torn_line_of_an_earlier_writer_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(STEP + "\n" + STEP[:20])
    writer_of(path).emit("step", 9)
    tail = EventTail(path)
    assert [event.step for event in tail.read_new()] == [3, 9]
    assert tail.foreign == 1


def test_a_tail_reads_each_event_once_and_a_torn_line_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read_new() == []
    with path.open("a") as file:
        file.write(STEP + "\nnot an event\n" + STEP[:30])
        file.flush()
        assert [event.step for event in tail.read_new()] == [3]
        assert tail.read_new() == []
        file.write(STEP[30:] + "\n")
    assert [event.step for event in tail.read_new()] == [3]
    assert tail.foreign == 1


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("", id="empty"),
        pytest.param("step 3 of 5", id="text"),
        pytest.param(PREFIX + "loading", id="prefix-and-text"),
        pytest.param("[1]", id="array"),
        pytest.param("{", id="cut-off"),
        pytest.param('{"kind": "step"}', id="incomplete"),
        pytest.param(STEP.replace('"step"', '"jump"', 1), id="unknown-kind"),
        pytest.param(STEP.replace('"step"', "[]", 1), id="kind-is-a-list"),
        pytest.param(STEP.replace("1.5", '"noon"'), id="no-time"),
        pytest.param(STEP.replace("3", "1e999"), id="infinite-step"),
        pytest.param(STEP.replace("1.5", "9" * 5000), id="too-many-digits"),
        pytest.param('{"a":' * 100_000, id="very-deep"),
        pytest.param(b"\xff\xfe{}", id="no-utf-8"),
    ],
)
def test_a_line_that_is_no_event_is_none(line: str | bytes) -> None:
    assert parse_line(line) is None


values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=20)
names = st.text(min_size=1, max_size=8).filter(lambda name: name not in {"kind", "time_s", "attempt", "step"})


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    time_s=st.floats(0, 1e10),
    attempt=st.integers(1, 10**6),
    step=st.integers(0, 10**9),
    data=st.dictionaries(names, values, max_size=4),
)
def test_every_event_is_read_back_from_one_line_of_strict_json(
    kind: str, time_s: float, attempt: int, step: int, data: dict[str, Any]
) -> None:
    line = Event(kind, time_s, attempt, step, data).to_line()
    assert "\n" not in line
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    found = parse_line(line.encode())
    plain = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in data.items()
    }
    assert found == Event(kind, round(time_s, 3), attempt, step, plain)


@settings(deadline=None, max_examples=100)
@example(b'{"kind": {}, "time_s": 1, "attempt": 1, "step": 1}')
@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]":,1ekindstp '), max_size=60).map(str.encode))
def test_any_bytes_are_an_event_or_none(line: bytes) -> None:
    assert parse_line(line) is None or isinstance(parse_line(line), Event)
