"""The train card's story, told from scripted events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.flow.cards import page
from steps.flow.cards.time_spent import cost, pieces
from steps.flow.cards.train import KEPT_POINTS, Curve, Story, figures, run_facts, view
from steps.protocol.events import KINDS, Event
from tests.flow.cards.samples import event


def told(*script: Event) -> Story:
    story = Story("tiny on orders", {"rank": 4}, run="LoraFlow/7")
    for item in script:
        story.observe(item)
    return story


def drawn(story: Story) -> str:
    return page.body("train.html", view(story))


STEP_TWO = event("step", 2, of=4, loss=1.0, lr=0.2, grad_norm=0.5, tokens_per_s=2000.0, seconds=30.0)
STEPS = [
    event("started", world=2, of=4),
    event("model_loaded", trainable=1000, parameters=20_000),
    event("first_step", 1, seconds=3.0),
    event("step", 1, of=4, loss=2.0, lr=0.1, grad_norm=1.5, tokens_per_s=1000.0, seconds=30.0),
    replace(STEP_TWO, time_s=STEP_TWO.time_s + 30.0),
    event("checkpoint", 2, bytes=3 * 2**20, seconds=0.25),
    event("validation", 2, loss=1.5),
]


def test_a_card_is_whole_before_the_first_event() -> None:
    text = drawn(told())
    for words in ("tiny on orders", "Waiting for the workers.", "rank", "LoraFlow/7", "tokens/s"):
        assert words in text


def test_the_story_of_a_training() -> None:
    story = told(*STEPS)
    assert story.status == "Training, attempt 1."
    assert story.sentences == [
        "Attempt 1 started with 2 processes.",
        "Checkpoint at step 2: 3.0 MiB in 0.25 s.",
        "Validation at step 2: loss 1.5000.",
    ]
    assert figures(story) == [
        ("step", "2 / 4", ""),
        ("training loss", "1.0000", "from 2.0000"),
        ("validation loss", "1.5000", "at step 2"),
        ("tokens/s", "1,500", "on average"),
        ("time left", "1 min 00 s", ""),
    ]
    charts = view(story)["charts"]
    assert [one.title for one in charts] == ["loss", "tokens/s", "learning rate", "gradient norm"]
    assert [line.name for line in charts[0].lines] == ["training, smoothed", "each step", "validation"]
    assert [tick.text for tick in charts[0].x_ticks] == ["0", "1", "2", "3", "4"]
    assert [(mark.style, mark.at) for mark in charts[0].marks] == [("checkpoint", 500)]
    assert "50% of the steps are done." in drawn(story)


def test_the_end_tells_time_and_cost_once() -> None:
    story = told(*STEPS, event("stopping", 2), event("finished", 4))
    assert "publishing the adapter" in story.status
    story.close(
        {
            "total_s": 61.0,
            "productive_s": 45.0,
            "queue_s": 16.0,
            "goodput": 0.74,
            "cost": 1.5,
            "currency": "EUR",
            "node_hours": 0.2,
        }
    )
    text = drawn(story)
    for words in (
        "Training is over.",
        "Where the time went",
        "waiting in the queue 16 s",
        "(26%)",
        "<b>1.50 EUR<",
        "0.2 node-hours",
    ):
        assert text.count(words) == 1, words
    assert "74% of it training" in text
    assert "time left" not in text


def test_a_new_attempt_draws_the_steps_behind_its_checkpoint_anew_and_is_marked() -> None:
    story = told(
        *(event("step", step, of=4, loss=1.0) for step in (1, 2, 3)), event("checkpoint", 2), event("checkpoint", 3)
    )
    story.observe(event("started", 2, attempt=2, world=1))
    story.observe(event("step", 3, of=4, loss=0.5, attempt=2))
    assert story.curves["loss"].all() == [(1.0, 1.0), (2.0, 1.0), (3.0, 0.5)]
    assert [(mark.style, mark.step) for mark in story.marks] == [("checkpoint", 2), ("attempt", 2)]
    assert story.sentences[-1] == "Attempt 2 started with 1 process, from the checkpoint of step 2."
    assert "attempt 2</em>" in drawn(story)


def test_a_long_training_keeps_few_points_and_its_newest() -> None:
    curve = Curve()
    for step in range(50_000):
        curve.add(step, float(step))
    assert len(curve.points) <= KEPT_POINTS
    assert curve.all()[-1] == (49_999.0, 49_999.0)
    gaps = {after[0] - before[0] for before, after in zip(curve.points, curve.points[1:], strict=False)}
    assert gaps == {16.0}


def test_the_date_is_that_of_the_first_event() -> None:
    assert run_facts(told(*STEPS))["started"] == "2001-09-09 01:46 UTC"
    assert run_facts(told())["started"] == ""
    for damaged in (float("nan"), float("inf"), -1e300, 1e300):
        assert drawn(told(Event("started", damaged, 1, 0)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://huggingface.co/datasets/tatsu-lab/alpaca", True),
        ("http://localhost:8083/LoraFlow/7", True),
        ("javascript:alert(1)", False),
        ("https://x.y/' onclick='z", False),
        ("see https://x.y", False),
        ("https://user:word@x.y/", False),
        ("/home/me", False),
    ],
)
def test_only_a_plain_web_address_becomes_a_link(text: str, expected: bool) -> None:
    assert ('<a href="' in page.body("train.html", view(Story("t", {"where": text})))) == expected


data = st.dictionaries(
    st.sampled_from(["of", "loss", "lr", "seconds", "tokens_per_s", "world", "trainable", "parameters", "bytes"]),
    st.none() | st.integers(-5, 10**12) | st.floats() | st.text(max_size=5) | st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.builds(Event, st.sampled_from(sorted(KINDS)), st.floats(), st.integers(1, 5), st.integers(0, 10**9), data)
    )
)
def test_any_events_can_be_drawn(events: list[Event]) -> None:
    assert drawn(told(*events))


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from(["total_s", "productive_s", "queue_s", "goodput", "cost", "currency", "node_hours"]),
        st.none() | st.floats() | st.text(max_size=5),
    )
)
def test_any_account_can_be_drawn(account: dict[str, Any]) -> None:
    story = told(*STEPS)
    story.close(account)
    assert drawn(story)


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        pytest.param({}, [], id="empty"),
        pytest.param({"checkpoint_s": 0.01}, [], id="no-length"),
        pytest.param({"model_load_s": 1.26}, [("loading the model", "1.3 s", "100%")], id="short"),
        pytest.param(
            {"queue_s": 1.0, "productive_s": 199.0},
            [("training", "3 min 19 s", "100%"), ("waiting in the queue", "1.0 s", "below 1%")],
            id="two",
        ),
    ],
)
def test_where_the_time_went(account: dict[str, float], expected: list[tuple[str, str, str]]) -> None:
    assert [(piece.name, piece.words, piece.percent) for piece in pieces(account)] == expected


def test_cost_is_told_where_there_is_a_price() -> None:
    assert cost({"node_hours": 3.0}) == ""
    assert cost({"node_hours": 3.2, "cost": 12.5, "currency": "USD"}) == "12.50 USD for 3.2 node-hours"
