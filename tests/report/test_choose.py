"""Which sinks a config asks for, and what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steps.report.choose import problems, sinks_of
from steps.report.metrics import Metrics
from steps.settings.reporting import Reporting
from tests.report.standin import change, facts_of, serving

HOOK = {"notify": {"address_from": "HOOK"}}


def reporting(**values: Any) -> Reporting:
    return Reporting.model_validate(values)


def test_nothing_is_told_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert sinks_of(Reporting(), facts_of(tmp_path), {"MLFLOW_TRACKING_URI": "http://x", "HOOK": "http://x"}) == []
    assert problems(Reporting(), {}) == []


def test_every_name_is_a_sink(tmp_path: Path) -> None:
    asked = reporting(report_to=["tensorboard", "wandb", "mlflow", "prometheus", "otlp"], **HOOK)
    environment = {"MLFLOW_TRACKING_URI": "http://m", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "HOOK": "http://h"}
    assert problems(asked, environment) == []
    sinks = sinks_of(asked, facts_of(tmp_path), environment)
    assert [sink.name for sink in sinks] == ["tensorboard", "wandb", "mlflow", "metrics", "notify"]
    metrics = next(sink for sink in sinks if isinstance(sink, Metrics))
    assert (metrics.to_file, metrics.endpoint) == (True, "http://c")


def test_every_address_that_is_missing_is_named_at_once() -> None:
    found = problems(reporting(report_to=["mlflow", "otlp"], **HOOK), {})
    assert [where for where, _ in found] == [
        *("reporting.mlflow_uri", "reporting.otlp_endpoint"),
        "reporting.notify.address_from",
    ]


@pytest.mark.parametrize("field", ["mlflow_uri", "otlp_endpoint"])
@pytest.mark.parametrize(("value", "word"), [("https://u:secret@host", "password"), ("host:80", "must begin with")])
def test_an_address_that_is_kept_with_the_run_holds_no_password(field: str, value: str, word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        reporting(**{field: value})


def test_both_ways_of_a_message_are_used(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving() as server:
        asked = reporting(notify={"address_from": "HOOK", "command": f"tee {out}"})
        [sink] = sinks_of(asked, facts_of(tmp_path / "t"), {"HOOK": server.url})
        sink.send([change("gave_up", kind="permanent", failure_class="user", message="why")], [])
    assert len(server.asked) == 1
    assert "why" in out.read_text()
