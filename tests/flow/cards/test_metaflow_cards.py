"""Metaflow's side of the cards, with a card that only remembers and with Metaflow's own classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from metaflow import plugins
from metaflow.plugins.cards.card_cli import update_card

from steps.flow.cards.card_type import CARD_TYPE, Body, LoraCard, register_card_type
from steps.flow.cards.metaflow_cards import REPORT_PAGE, TRAIN_PAGE, TrainCard, fill_evaluate_card
from tests.flow.cards.samples import FakeCard, event, row
from tests.shared.sample_records import REPORT

TASK = SimpleNamespace(pathspec="LoraFlow/7/train/2", finished=False)


def rendered(mode: str, render_seq: Any = 1) -> Any:
    data = {"components": {"body_1": "<p>new</p>"}, "render_seq": render_seq, "user": None}
    return update_card(LoraCard(components=["<p>now</p>"]), mode, TASK, data).data


def test_the_type_is_known_to_metaflow_once() -> None:
    register_card_type()
    register_card_type()
    assert [card for card in plugins.CARDS if card.type == CARD_TYPE] == [LoraCard]


def test_a_finished_page_has_no_script() -> None:
    page = rendered("render", "final")
    assert "<p>now</p>" in page
    assert "<script" not in page
    assert "LoraFlow/7/train/2" in page


def test_a_live_page_takes_new_bodies_and_is_reloaded_at_the_end() -> None:
    page = rendered("render_runtime")
    assert 'METAFLOW_RELOAD_TOKEN = "never"' in page
    assert page.count("<script") == 1
    assert rendered("refresh")["data"] == {"body": "<p>new</p>"}
    assert rendered("refresh")["reload_token"] == "never"
    assert rendered("refresh", "final")["reload_token"] == "final"


def test_a_training_is_one_body_that_follows_the_events() -> None:
    card = FakeCard()
    train = TrainCard(card, title="tiny on orders", facts={"rank": 4})
    assert "Waiting for the workers." in card.text()
    train.observe(event("started", world=2))
    train.observe(event("first_step", 1))
    train.notice("a checkpoint was set aside <b>")
    train.close({"productive_s": 61.0})
    assert card.refreshes == 3
    assert len(card.parts) == 1
    text = card.text()
    assert "Training is over." in text
    assert "a checkpoint was set aside &lt;b&gt;." in text
    json.dumps(text)


def test_the_training_is_a_file_too_which_is_reloaded_until_its_end(tmp_path: Path) -> None:
    now_s = [0.0]
    train = TrainCard(FakeCard(), title="tiny <b>", facts={}, folder=tmp_path, clock=lambda: now_s[0])
    file = tmp_path / TRAIN_PAGE
    train.observe(event("step", 1, of=4, loss=2.0))
    assert '<meta http-equiv="refresh" content="15">' in file.read_text("utf-8")
    train.observe(event("step", 2, of=4, loss=1.0))
    assert "1 / 4" in file.read_text("utf-8"), "not more often than every ten seconds"
    now_s[0] = 11.0
    train.observe(event("step", 3, of=4, loss=1.0))
    assert "3 / 4" in file.read_text("utf-8")
    train.close({"productive_s": 3.0})
    text = file.read_text("utf-8")
    assert "Training is over." in text
    assert "refresh" not in text
    assert "<script" not in text
    assert str(tmp_path.parent) in text


def test_a_disk_that_refuses_the_file_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / TRAIN_PAGE).mkdir()
    train = TrainCard(FakeCard(), title="tiny", facts={}, folder=tmp_path)
    train.notice("hello")
    assert "card.html is not written" in caplog.text


def test_the_evaluation_is_a_card_and_a_file(tmp_path: Path) -> None:
    card = FakeCard()
    report = replace(REPORT, path=str(tmp_path))
    fill_evaluate_card(card, title="tiny", report=report, samples=[row("p <b>")], lineage={"base.digest": "b"})
    assert isinstance(card.parts[0], Body)
    page = (tmp_path / REPORT_PAGE).read_text("utf-8")
    for text in (card.text(), page):
        for words in ("0.0% → 93.8%", "p &lt;b&gt;", "base.digest"):
            assert words in text


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    report = replace(REPORT, path=str(tmp_path / "gone"))
    fill_evaluate_card(FakeCard(), title="tiny", report=report, samples=[], lineage={})
    assert not (tmp_path / "gone").exists()
