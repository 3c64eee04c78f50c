"""The flow as Argo gets it from a Config: a team's names, an event that starts it, a schedule; and the event at its end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.flow import deployment
from steps.settings.config import parse_settings
from tests.flow.flow_harness import FLOW, Place
from tests.flow.test_parameters import s3

__all__ = ["s3"]

GOLDEN = Path(__file__).parent / "golden"
COMPILE = f"""
import json, runpy, sys
from metaflow.plugins.argo.argo_workflows import ArgoWorkflows

def both(self):
    sensor = self._sensor.to_json() if self._sensor else None
    return "BOTH" + json.dumps(
        {{
            "template": self._workflow_template.to_json(),
            "sensor": sensor,
            "schedule": [self._schedule, self._timezone],
        }}
    )

ArgoWorkflows.__str__ = both
sys.argv[0] = {str(FLOW)!r}
runpy.run_path({str(FLOW)!r}, run_name="__main__")
"""
TEAM = {
    "project": "team_a",
    "trigger": {"event": "data-arrived", "parameters": {"dataset": "path", "max_steps": "steps"}},
    "schedule": "0 2 * * *",
    "timezone": "Europe/Berlin",
    "announce": "model-passed",
}


def compiled(place: Place, s3: str, deployment: dict[str, Any]) -> dict[str, Any]:
    """What `argo-workflows create` would send: template and sensor."""
    cluster = {"namespace": "ns", "image": "r.io/lora:1", "mount_path": str(place.folder)}
    place.write_config(launcher={"kind": "pytorchjob"}, cluster=cluster, deployment=deployment)
    place.environment.update(
        METAFLOW_DEFAULT_DATASTORE="s3",
        METAFLOW_DATASTORE_SYSROOT_S3="s3://flows/metaflow",
        METAFLOW_S3_ENDPOINT_URL=s3,
        METAFLOW_KUBERNETES_NAMESPACE="ns",
        METAFLOW_ARGO_EVENTS_EVENT="metaflow-event",
        METAFLOW_ARGO_EVENTS_EVENT_BUS="default",
        METAFLOW_ARGO_EVENTS_EVENT_SOURCE="metaflow",
        METAFLOW_ARGO_EVENTS_SERVICE_ACCOUNT="operate",
        METAFLOW_ARGO_EVENTS_WEBHOOK_URL="http://metaflow-webhook:12000/metaflow-event",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    head = ["--config", "config", str(place.config)]
    done = place.call([sys.executable, "-c", COMPILE, *head, "argo-workflows", "create", "--only-json"])
    assert "BOTH" in done.stdout, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.partition("BOTH")[2])
    return found


@pytest.mark.slow
def test_a_team_s_deployment_has_its_name_its_trigger_and_its_schedule(place: Place, s3: str) -> None:
    found = compiled(place, s3, {**TEAM, "production": True})
    template, sensor = found["template"], found["sensor"]
    annotations = template["metadata"]["annotations"]
    chosen = {
        "name": template["metadata"]["name"],
        "project": {key: value for key, value in annotations.items() if "project" in key or "branch" in key},
        "tags": json.loads(annotations.get("metaflow/tags", "[]")),
        "schedule": found["schedule"],
        "filters": [item["filters"] for item in sensor["spec"]["dependencies"]],
        "event": sensor["spec"]["dependencies"][0]["eventName"],
        "parameters": sensor["spec"]["triggers"][0]["template"]["k8s"]["parameters"],
    }
    assert chosen == json.loads((GOLDEN / "team_a.json").read_text())


def test_only_what_is_named_is_added() -> None:
    empty = parse_settings(None).deployment.model_dump(mode="json")
    assert deployment.decorators_of(empty) == {}
    weekly = parse_settings({"deployment": {"project": "team_a", "branch": "weekly", "production": True}}).deployment
    project = {"name": "team_a", "branch": "weekly", "production": True}
    assert deployment.decorators_of(weekly.model_dump(mode="json")) == {"project": project}
    given = parse_settings({"deployment": TEAM}).deployment.model_dump(mode="json")
    assert deployment.decorators_of(given) == {
        "project": {"name": "team_a"},
        "trigger": {"event": {"name": "data-arrived", "parameters": {"dataset": "path", "max-steps": "steps"}}},
        "schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin"},
    }


def test_an_event_of_the_project_has_a_name_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trigger = {"event": "model-passed", "of_project": True}
    given = parse_settings({"deployment": {"project": "team_a", "trigger": trigger}}).deployment
    event = deployment.decorators_of(given.model_dump(mode="json"))["trigger"]["event"]
    now = SimpleNamespace(get=lambda name, _: {"project_name": "team_a", "branch_name": "prod"}.get(name))
    monkeypatch.setattr("metaflow.current", now)
    assert event["name"]() == "mfns.team_a.prod.model-passed"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"project": "Team-A"}, "deployment.project"),
        ({"schedule": "0 2 * * ? *"}, "expected five fields"),
        ({"timezone": "Europe/Berlin"}, "a timezone needs a schedule"),
        ({"announce": "two words"}, "deployment.announce"),
        ({"trigger": {"event": "a", "of_project": True}}, "need a project"),
        ({"branch": "weekly"}, "need a project"),
        ({"trigger": {"parameters": {"dataset": "path"}}}, "parameters need an event"),
        ({"trigger": {"event": "a", "parameters": {"datset": "path"}}}, "did you mean 'dataset'"),
        ({"trigger": {"event": "a", "parameters": {"dataset": "a.b"}}}, "no field that Argo can read"),
    ],
)
def test_a_mistake_in_the_deployment_is_told(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_settings({"deployment": given})


def flow_of(*, passed: bool, announce: str = "model-passed", dry_run: bool = False) -> Any:
    record = {"name": "n", "digest": "d", "path": "p"}
    return SimpleNamespace(
        config=SimpleNamespace(to_dict=lambda: {"deployment": {"announce": announce}}),
        dry_run=dry_run,
        plan={"model": record, "dataset": record},
        base=record,
        prepared=record,
        adapter=record,
        merged=record,
        report={"gate_passed": passed, "tuned_score": 0.5, "base_score": 0.25},
    )


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What is sent, by name and payload."""
    from metaflow import integrations
    from metaflow.plugins.argo.argo_events import ArgoEvent

    sent: list[tuple[str, dict[str, Any]]] = []

    class Kept(ArgoEvent):  # type: ignore[misc]
        def publish(self, payload: Any = None, force: bool = True, ignore_errors: bool = True) -> None:
            assert not force
            sent.append((self._name, self._payload))

    monkeypatch.setattr(integrations, "ArgoEvent", Kept)
    monkeypatch.setattr("steps.flow.metaflow_internals.pathspec", lambda: "LoraFlow/1")
    return sent


def test_the_event_tells_of_a_model_that_passed_its_gate_and_of_no_other(
    published: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    for flow in (flow_of(passed=False), flow_of(passed=True, announce=""), flow_of(passed=True, dry_run=True)):
        deployment.announce(flow)
    assert not published
    assert "is not published: the gate is not passed" in capsys.readouterr().out
    deployment.announce(flow_of(passed=True))
    ((name, payload),) = published
    assert name == "model-passed"
    assert (payload["run"], payload["merged"], payload["score"]) == ("LoraFlow/1", "p", 0.5)
    assert all(key.replace("_", "").isalnum() for key in payload)
