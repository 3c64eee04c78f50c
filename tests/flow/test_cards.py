"""The cards, fed with scripted events against a card that only remembers what it was given."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.flow.cards import MAX_POINTS, TrainCard, _cell, _curve, account_rows, fill_evaluate_card, thin
from steps.protocol.events import KINDS, Event
from tests.shared.sample_records import REPORT


@dataclass
class FakeCard:
    """Remembers components and counts refreshes."""

    parts: list[Any] = field(default_factory=list)
    refreshes: int = 0

    def append(self, part: Any) -> None:
        self.parts.append(part)

    def refresh(self) -> None:
        self.refreshes += 1

    def text(self) -> str:
        """Everything that the card would show, as Metaflow renders it."""
        return json.dumps([part.render() for part in self.parts], ensure_ascii=False, default=str)


def event(kind: str, step: int = 0, **data: Any) -> Event:
    return Event(kind, 0.0, 1, step, data)


def train_card() -> tuple[FakeCard, TrainCard]:
    card = FakeCard()
    return card, TrainCard(card, title="tiny on orders", facts={"rank": 4})


def losses(card: TrainCard) -> list[tuple[float, str]]:
    return [(point["step"], point["split"]) for point in card._loss.render()["spec"]["data"]["values"]]


def test_a_card_is_whole_before_the_first_event() -> None:
    card, _ = train_card()
    text = card.text()
    for words in ("# tiny on orders", "Waiting for the workers.", "What happened", "rank", "tokens/s"):
        assert words in text
    assert card.refreshes == 0


def test_the_story_of_a_training_is_drawn_without_a_new_component() -> None:
    card, train = train_card()
    parts = len(card.parts)
    script = [
        event("started", world=2),
        event("model_loaded", trainable=1000, parameters=20_000),
        event("first_step", 1, seconds=3.0),
        event("step", 1, of=4, loss=2.0, tokens_per_s=1234.0, seconds=30.0),
        event("step", 2, of=4, loss=1.0, tokens_per_s=1234.0, seconds=30.0),
        event("checkpoint", 2, bytes=3 * 2**20, seconds=0.25),
        event("validation", 2, loss=1.5),
    ]
    for item in script:
        train.observe(item)
    assert len(card.parts) == parts
    assert card.refreshes >= len(script) - 1
    assert losses(train) == [(1, "training"), (2, "training"), (2, "validation")]
    assert len(train._speed.render()["spec"]["data"]["values"]) == 2
    text = card.text()
    for words in (
        "attempt 1 started with 2",
        "checkpoint at step 2: 3.0 MiB in 0.25 s",
        "loss 1.5000",
        "2 / 4",
        "1 min 00 s",
    ):
        assert words in text
    train.observe(event("stopping", 2))
    train.observe(event("finished", 4))
    assert "publishing the adapter" in card.text()
    train.close({"productive_s": 61.0, "goodput": 0.5})
    assert "Where the time went" in card.text()
    assert "Training is over." in card.text()


def test_an_attempt_that_goes_on_from_a_checkpoint_draws_its_steps_anew() -> None:
    _, train = train_card()
    for step in (1, 2, 3):
        train.observe(event("step", step, of=4, loss=1.0))
    train.observe(event("started", 2))
    assert losses(train) == [(1, "training"), (2, "training"), (3, "training")]
    train.observe(event("step", 3, of=4, loss=0.5))
    assert [point["loss"] for point in train._loss.render()["spec"]["data"]["values"]] == [1.0, 1.0, 0.5]


def test_what_the_supervisor_says_is_shown_and_never_interpreted() -> None:
    card, train = train_card()
    for number in range(50):
        train.notice(f"notice {number} <script>alert(1)</script>")
    assert "<script>" not in card.text()
    assert "notice 49 &lt;script&gt;" in card.text()
    assert "notice 9 " not in card.text()


data = st.dictionaries(
    st.sampled_from(["of", "loss", "seconds", "tokens_per_s", "world", "trainable", "parameters", "bytes"]),
    st.none() | st.integers(-5, 10**12) | st.floats() | st.text(max_size=5),
)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.builds(Event, st.sampled_from(sorted(KINDS)), st.just(0.0), st.just(1), st.integers(0, 10**9), data))
)
def test_any_events_can_be_drawn(events: list[Event]) -> None:
    card, train = train_card()
    for item in events:
        train.observe(item)
    assert card.text()


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 500))
def test_thinning_keeps_the_first_and_the_last_point_and_the_order(count: int, most: int) -> None:
    points = [{"step": step} for step in range(count)]
    shown = thin(points, most)
    assert len(shown) <= most + 1
    assert shown == sorted(shown, key=lambda point: point["step"])
    assert (shown[:1], shown[-1:]) == (points[:1], points[-1:])
    assert len({point["step"] for point in shown}) == len(shown)
    assert count > most or shown == points


def test_a_long_run_is_drawn_with_a_bounded_number_of_points() -> None:
    assert len(thin([{"step": step} for step in range(100_000)], MAX_POINTS)) <= MAX_POINTS + 1


def test_a_curve_shows_single_points_while_there_are_few() -> None:
    few, many = _curve("loss", [{"step": 1}]), _curve("tokens/s", [{"step": 1}] * 60)
    assert (few["mark"]["point"], many["mark"]["point"]) == (True, False)
    assert few["encoding"]["color"]["legend"] == {"orient": "top"}
    assert many["encoding"]["color"]["legend"] is None
    json.dumps(few, allow_nan=False)


@pytest.mark.parametrize(
    ("account", "rows"),
    [
        pytest.param({}, [], id="empty"),
        pytest.param({"goodput": 0.954}, [["goodput", "95%"]], id="share"),
        pytest.param({"model_load_s": 1.26}, [["model load", "1.3 s"]], id="short"),
        pytest.param({"productive_s": 200.0}, [["productive", "3 min 20 s"]], id="long"),
        pytest.param({"checkpoints_s": 0.01}, [], id="no-length"),
        pytest.param({"attempts": 3, "cost": 1.5}, [["attempts", "3"], ["cost", "1.5"]], id="counts"),
        pytest.param({"currency": "USD", "none": None}, [], id="no-figures"),
    ],
)
def test_the_account_in_words(account: dict[str, Any], rows: list[list[str]]) -> None:
    assert account_rows(account) == rows


def test_the_evaluate_card_holds_scores_answers_and_lineage() -> None:
    card = FakeCard()
    samples = [{"prompt": "p <b>", "reference": "r", "base_answer": "x" * 700, "tuned_answer": None}]
    fill_evaluate_card(card, title="tiny", report=REPORT, samples=samples, lineage={"base.digest": "b"})
    text = card.text()
    for words in ("93.8%", "base model: 0.0%", REPORT.gate, "1 of 32 held-out samples", "base.digest"):
        assert words in text


def test_an_answer_is_a_code_block() -> None:
    assert _cell("# a\n<b>") == "    # a\n    <b>"
    assert _cell(None) == "    –"
    assert _cell("") == "    "
    assert _cell("x" * 601).endswith("…")
