"""Gauges from events, as Prometheus' text and as OTLP's JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from steps.protocol.events import KINDS, Event
from steps.protocol.rundir import TrainDir
from steps.report.metrics import FILE, Metrics, exposition, labels_of, otlp
from steps.report.pump import Unsent
from steps.report.sink import ReportError
from steps.report.state import PHASES, Gauge, State
from tests.report.standin import change, facts_of, serving, write_events

LABELS = {"run": "LoraFlow/7"}


def events_of(folder: Path) -> list[Event]:
    unsent = Unsent(TrainDir(folder))
    unsent.read()
    return unsent.events


def values(state: State, now_s: float = 1100.0) -> dict[str, float]:
    return {gauge.name + "".join(gauge.labels.values()): gauge.value for gauge in state.gauges(now_s)}


def test_the_state_is_what_is_true_now(tmp_path: Path) -> None:
    write_events(tmp_path, 1, range(1, 5))
    state = State(10)
    state.advance([change("attempt_began", time_s=999)], events_of(tmp_path))
    found = values(state)
    assert found["lora_step"] == 4
    assert found["lora_loss"] == 0.25
    assert found["lora_validation_loss"] == 0.25
    assert found["lora_tokens_per_second"] == 100
    assert found["lora_phasetrain"] == 1
    assert sum(value for name, value in found.items() if name.startswith("lora_phase")) == 1
    assert found["lora_event_age_seconds"] == 1100 - 1007
    assert found["lora_checkpoint_age_seconds"] == 1100 - 1006


def test_a_later_attempt_begins_below_and_failures_are_counted_by_class(tmp_path: Path) -> None:
    write_events(tmp_path, 1, range(1, 5))
    write_events(tmp_path, 2, range(3, 4), time_s=2000.0)
    turns = [
        change("attempt_began", 1, 999),
        change("attempt_ended", 1, 1500, failure_class="network"),
        change("attempt_began", 2, 1600),
    ]
    state = State(10)
    state.advance(turns, events_of(tmp_path))
    found = values(state, 3000.0)
    assert (found["lora_step"], found["lora_attempt"]) == (3, 2)
    assert found["lora_attempts_failed_totalnetwork"] == 1


def test_every_event_of_the_workers_has_a_phase() -> None:
    for kind in sorted(KINDS):
        state = State(10)
        state.advance([], [Event(kind, 1000.0, 1, 1, {})])
        assert state.phase in PHASES


def test_what_is_told_again_after_a_failed_delivery_counts_once() -> None:
    state = State(10)
    for _ in range(2):
        state.advance(
            [change("attempt_ended", 1, failure_class="network"), change("attempt_ended", 2, failure_class="hang")], []
        )
    found = values(state)
    assert (found["lora_attempts_failed_totalnetwork"], found["lora_attempts_failed_totalhang"]) == (1, 1)


def test_a_queue_a_failure_and_the_end_are_phases() -> None:
    state = State(10)
    for kind, phase in (
        ("queued", "queue"),
        ("admitted", "startup"),
        ("attempt_ended", "recovery"),
        ("gave_up", "ended"),
    ):
        state.advance([change(kind)], [])
        assert state.phase == phase
    account = {"queue_s": 5.0, "total_s": 9.0, "goodput": 0.9, "cost": 3.5, "per_attempt": []}
    state.advance([change("finished", step=10, account=account)], [])
    found = values(state)
    assert (found["lora_time_secondsqueue"], found["lora_goodput_ratio"], found["lora_cost"]) == (5.0, 0.9, 3.5)
    assert not any("total" in name for name in found)


def test_the_text_format_is_escaped_and_grouped() -> None:
    gauges = [
        Gauge("b_total", "B.", 2, {"class": 'a"b\\c\nd'}),
        Gauge("a", "A.", math.nan),
        Gauge("a", "A.", -math.inf),
    ]
    assert exposition(gauges, LABELS).splitlines() == [
        "# HELP a A.",
        "# TYPE a gauge",
        'a{run="LoraFlow/7"} NaN',
        'a{run="LoraFlow/7"} -Inf',
        "# HELP b_total B.",
        "# TYPE b_total counter",
        'b_total{run="LoraFlow/7",class="a\\"b\\\\c\\nd"} 2.0',
    ]


def test_otlp_is_json_without_what_is_no_number() -> None:
    gauges = [Gauge("a", "A.", math.nan), Gauge("b", "B.", 1.5), Gauge("c_total", "C.", 2)]
    body = json.loads(json.dumps(otlp(gauges, LABELS, began_s=1.0, now_s=2.5), allow_nan=False))
    metrics = body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    assert [metric["name"] for metric in metrics] == ["b", "c_total"]
    point = metrics[0]["gauge"]["dataPoints"][0]
    assert point["asDouble"] == 1.5
    assert point["timeUnixNano"] == "2500000000"
    assert point["attributes"] == [{"key": "run", "value": {"stringValue": "LoraFlow/7"}}]
    assert metrics[1]["sum"] == {**metrics[1]["sum"], "aggregationTemporality": 2, "isMonotonic": True}


def test_the_sink_writes_a_file_and_posts_to_the_collectors_route(tmp_path: Path) -> None:
    write_events(tmp_path, 1, range(1, 5))
    with serving() as server:
        sink = Metrics(facts_of(tmp_path, namespace="team"), to_file=True, endpoint=f"{server.url}/")
        sink.send([change("attempt_began")], events_of(tmp_path))
        server.status = 503
        with pytest.raises(ReportError, match="answered 503"):
            sink.send([], [])
    assert server.asked[0][0] == "/v1/metrics"
    text = (tmp_path / FILE).read_text()
    assert 'lora_step{run="LoraFlow/7",model="tiny",dataset="orders",namespace="team"} 4.0' in text
    assert "namespace" not in labels_of(facts_of(tmp_path))
