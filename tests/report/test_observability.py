"""The dashboard and the alert rules speak of series that there are, and of labels that these have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.report.metrics import exposition, labels_of
from steps.report.state import State
from tests.report.standin import change, facts_of, write_events
from tests.report.test_metrics import events_of

FOLDER = Path(__file__).resolve().parents[2] / "config" / "observability"


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def questions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]] + [
        rule["expr"] for rule in rules()
    ]


@pytest.fixture
def series(tmp_path: Path) -> dict[str, set[str]]:
    """Every series of a training that failed once and finished → its labels."""
    write_events(tmp_path, 1, range(1, 4))
    account = {"queue_s": 1.0, "goodput": 0.9, "node_hours": 2.0, "cost": 3.0}
    turns = [change("attempt_ended", failure_class="network"), change("finished", time_s=9e9, step=3, account=account)]
    state = State(10)
    state.advance(turns, events_of(tmp_path))
    common = set(labels_of(facts_of(tmp_path, namespace="team")))
    found: dict[str, set[str]] = {}
    for gauge in state.gauges(2000.0):
        found.setdefault(gauge.name, set(common)).update(gauge.labels)
    return found


def test_every_question_is_about_series_that_are_told(series: dict[str, set[str]]) -> None:
    asked = {name for question in questions() for name in re.findall(r"\blora_\w+", question)}
    assert asked <= series.keys()
    assert "lora_step" in asked


def test_every_label_that_is_asked_for_is_one(series: dict[str, set[str]]) -> None:
    for question in questions():
        for name, inside in re.findall(r"\b(lora_\w+)\{([^}]*)\}", question):
            assert set(re.findall(r"(\w+)=", inside)) <= series[name], question
    known = set().union(*series.values())
    legends = [target["legendFormat"] for panel in dashboard()["panels"] for target in panel["targets"]]
    words = [text for rule in rules() for text in rule["annotations"].values()]
    assert set(re.findall(r"\{\{(\w+)\}\}", " ".join(legends))) <= known
    assert set(re.findall(r"\$labels\.(\w+)", " ".join(words))) <= known


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert max(x for x, _ in taken) < 24
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_rules_fire_when_they_should() -> None:
    told = subprocess.run(
        ["promtool", "test", "rules", str(Path(__file__).with_name("alerts.promtool.yaml"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_reads_our_text(series: dict[str, set[str]], tmp_path: Path) -> None:
    state = State(10)
    state.advance([change("attempt_ended", failure_class="network")], events_of(tmp_path))
    text = exposition(state.gauges(2000.0), labels_of(facts_of(tmp_path)))
    told = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
