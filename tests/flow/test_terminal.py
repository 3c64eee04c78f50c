"""What a person reads in the terminal: few lines, the last one always, and no exception whatever the events hold."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steps.flow.terminal import Pace, ProgressPrinter, StageProgress, number, say, seconds_in_words
from steps.protocol.events import KINDS, Event


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def event(kind: str, step: int = 0, *, at_s: float = 0.0, attempt: int = 2, **data: Any) -> Event:
    return Event(kind, at_s, attempt, step, data)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), ("2.5", 2.5), ("many", 0.0), (None, 0.0), ([], 0.0), ("nan", 0.0), (float("inf"), 0.0), (10**400, 0.0)],
)
def test_a_figure_is_a_finite_number_or_nothing(value: object, expected: float) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (4.4, "4 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words


def test_the_story_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    printer = ProgressPrinter(every_s=5, clock=clock)
    printer.observe(event("started", world=2))
    printer.observe(event("started", 40))
    printer.observe(event("started", 40, layout_changed=True))
    printer.observe(event("model_loaded", trainable=1000, parameters=134_515_008))
    for step in range(1, 11):
        clock.now_s += 1
        printer.observe(event("step", step, at_s=2.0 * step, of=10, loss=1 / step, tokens_per_s=1234.5, seconds=2.0))
    printer.observe(event("checkpoint", 10))
    printer.observe(event("validation_progress", 10, done=16, of=32))
    printer.observe(event("validation", 10, loss=0.5))
    printer.observe(event("stopping", 10))
    printer.notice("attempt 2 failed")
    assert capsys.readouterr().out.splitlines() == [
        "attempt 2: workers started (2 processes)",
        "attempt 2: workers started (1 process), from the checkpoint of step 40",
        "attempt 2: workers started (1 process), from the checkpoint of step 40, saved on another layout",
        "model loaded: 1,000 of 134,515,008 parameters are trained",
        "step 1/10 | loss 1.0000 | 1,234 tokens/s | 18 s left",
        "step 6/10 | loss 0.1667 | 1,234 tokens/s | 8 s left",
        "step 10/10 | loss 0.1000 | 1,234 tokens/s | 0 s left",
        "step 10: validation: 16/32 rows",
        "step 10: validation loss 0.5000",
        "step 10: asked to stop; the state is saved",
        "attempt 2 failed",
    ]


def test_the_time_left_counts_validations_and_not_the_first_step() -> None:
    pace = Pace()
    assert pace.seconds_left(event("step", 1, at_s=1000, of=100, seconds=30.0)) == 99 * 30
    assert pace.seconds_left(event("step", 11, at_s=1010, of=100, seconds=1.0)) == 89
    assert (
        pace.seconds_left(event("step", 21, at_s=1040, of=100, seconds=1.0)) == 79 * 2
    )  # a validation of 20 s between
    assert pace.seconds_left(event("step", 100, at_s=1200, of=100, seconds=1.0)) == 0


def test_another_attempt_has_a_pace_of_its_own_and_a_clock_set_back_gives_no_negative_time() -> None:
    pace = Pace()
    pace.seconds_left(event("step", 1, at_s=1000, of=10, seconds=9.0))
    assert pace.seconds_left(event("step", 5, at_s=9000, attempt=3, of=10, seconds=2.0)) == 10
    assert pace.seconds_left(event("step", 6, at_s=8000, attempt=3, of=10, seconds=2.0)) == 0


data = st.dictionaries(
    st.sampled_from(["of", "loss", "seconds", "tokens_per_s", "world", "trainable", "parameters"]),
    st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.none(), max_size=1),
)


@settings(deadline=None, max_examples=60)
@example([Event("step", 0.0, 1, 1, {"of": 9e201, "seconds": -1.8e208})])  # the time left is beyond any number
@given(
    st.lists(st.builds(Event, st.sampled_from(sorted(KINDS)), st.just(0.0), st.just(1), st.integers(0, 10**9), data))
)
def test_a_damaged_event_never_ends_the_job_it_tells_of(events: list[Event]) -> None:
    printer = ProgressPrinter(every_s=0, clock=Clock())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.StringIO())
        for item in events:
            printer.observe(item)


def test_a_stage_shows_a_bar_at_its_pace_and_the_end_of_one_begun(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = StageProgress(every_s=1, clock=clock)
    progress("reading, rows", 1, 4)
    clock.now_s += 1
    progress("reading, rows", 2, 4)
    progress("reading, rows", 3, 4)
    progress("reading, rows", 4, 4)
    progress("reading, rows", 4, 4)
    progress("writing, rows", 4, 4)
    clock.now_s += 1
    progress("counting, tokens", 1500, 0)
    clock.now_s += 1
    progress("fetching, bytes", 3 * 2**20, 1600 * 2**20)
    clock.now_s += 1
    progress("checking, files", 0, 1)
    assert capsys.readouterr().out.splitlines() == [
        "reading: [##########..........] 2/4 rows",
        "reading: [####################] 4/4 rows",
        "counting: 1,500 tokens",
        "fetching: [....................] 3/1,600 MiB",
        "checking: [....................] 0/1 file",
    ]


def test_a_stage_knows_what_it_does() -> None:
    progress = StageProgress("loading", clock=Clock())
    assert progress.doing == "loading"
    progress("reading, rows", 1, 4)
    assert progress.doing == "reading"
    progress("reading, rows", 4, 4)
    assert progress.doing == "loading"


@pytest.mark.parametrize(
    ("told", "doing"),
    [
        ([], "waiting for the workers"),
        ([event("started", of=2)], "loading the model"),
        ([event("model_loaded")], "step 1"),
        ([event("started", of=2), event("step", 1, of=2)], "step 2"),
        ([event("started", of=2), event("validation_begin", 1)], "step 1: validation"),
        ([event("started", of=2), event("validation", 2)], "after the last step"),
        ([event("checkpoint_begin", 1)], "step 1: saving"),
        ([event("validation_begin", 2, what="adapter")], "check of the exported adapter"),
        ([event("finished", 2)], "the workers end"),
    ],
)
def test_what_a_job_does_follows_from_its_events(told: list[Event], doing: str) -> None:
    printer = ProgressPrinter()
    for item in told:
        printer.observe(item)
    assert printer.doing == doing


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_closed_terminal_and_one_without_utf_8_are_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    say("into the void")
    ascii_bytes = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(ascii_bytes, encoding="ascii"))
    say("2 × 3")
    assert ascii_bytes.getvalue() == b"2 ? 3\n"


def test_nothing_that_is_said_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("a \x1b]0;title\x07 \u202edfp \ud800 b")
    assert capsys.readouterr().out == "a ␛]0;title␇ ⟨U+202E⟩dfp ⟨U+D800⟩ b\n"
