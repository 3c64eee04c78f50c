"""MLflow over its REST interface, against a stand-in that keeps what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steps.report.mlflow import API, MLflow, server_of
from steps.report.mlflow import Server as Address
from steps.report.sink import Refused, ReportError
from tests.report.standin import Server, change, facts_of, serving, write_events
from tests.report.test_metrics import events_of

ARN = "arn:aws:sagemaker:us-west-2:111122223333:mlflow-tracking-server/team"
APP = "arn:aws:sagemaker:us-west-2:111122223333:mlflow-app/app-1"


@pytest.fixture
def mlflow() -> Iterator[Server]:
    """Runs by their key, as the real one keeps them."""
    with serving() as server:
        made: dict[str, str] = {}

        def create(body: Any) -> Any:
            key = next(tag["value"] for tag in body["tags"] if tag["key"] == "hyperpod-lora.train")
            made[key] = f"run-{len(made)}"
            return {"run": {"info": {"run_id": made[key]}}}

        def search(body: Any) -> Any:
            key = body["filter"].partition("'")[2].rstrip("'")
            return {"runs": [{"info": {"run_id": made[key]}}]} if key in made else {}

        def experiment(body: Any) -> Any:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}

        server.answers = {
            "experiments/get-by-name": experiment,
            "experiments/create": {"experiment_id": "5"},
            "runs/create": create,
            "runs/search": search,
        }
        yield server


def sink_of(server: Server, folder: Path) -> MLflow:
    return MLflow(facts_of(folder), server_of(server.url, {}), "team")


def test_one_run_over_all_attempts_with_params_data_and_idempotent_metrics(tmp_path: Path, mlflow: Server) -> None:
    write_events(tmp_path, 1, range(1, 5))
    events = events_of(tmp_path)
    sink_of(mlflow, tmp_path).send([change("attempt_began", nodes=2)], events)
    batches = mlflow.bodies("runs/log-batch")
    assert batches[0]["params"] == [{"key": "training.seed", "value": "42"}]
    first = batches[-1]["metrics"][0]
    assert first == {"key": "train/loss", "value": 1.0, "timestamp": 1002000, "step": 1}
    assert mlflow.bodies("runs/log-inputs")[0]["datasets"][0]["dataset"]["digest"] == "d" * 36
    parents = [tag for tag in mlflow.bodies("runs/create")[1]["tags"] if tag["key"] == "mlflow.parentRunId"]
    assert parents == [{"key": "mlflow.parentRunId", "value": "run-0"}]
    # another launcher goes on in the same run, and tells the same again
    mlflow.asked.clear()
    sink_of(mlflow, tmp_path).send([change("attempt_began", nodes=2)], events)
    assert mlflow.bodies("runs/create") == []
    assert mlflow.bodies("runs/log-batch") == [batches[-1]]
    assert mlflow.bodies("runs/update")[0]["status"] == "RUNNING"


def test_attempts_end_as_child_runs_and_the_training_with_its_account(tmp_path: Path, mlflow: Server) -> None:
    sink = sink_of(mlflow, tmp_path)
    sink.send([change("attempt_began")], [])
    mlflow.asked.clear()
    ended = {"failure_class": "network", "message": "gone", "node": "n1", "rank": 0, "spent_s": 5.0, "complete_step": 4}
    account = {"goodput": 0.9, "currency": "USD", "per_attempt": []}
    sink.send([change("attempt_ended", **ended), change("finished", 2, step=10, account=account)], [])
    child, parent = mlflow.bodies("runs/log-batch")
    assert {tag["key"]: tag["value"] for tag in child["tags"]}["node"] == "n1"
    assert {metric["key"] for metric in child["metrics"]} == {"spent_s", "complete_step"}
    assert [metric["key"] for metric in parent["metrics"]] == ["account/goodput"]
    assert [body["status"] for body in mlflow.bodies("runs/update")] == ["FAILED", "FINISHED"]


@pytest.mark.parametrize(("kind", "status"), [("exhausted", "FAILED"), ("cancelled", "KILLED"), ("budget", "FAILED")])
def test_a_training_that_is_given_up_ends_its_run(tmp_path: Path, mlflow: Server, kind: str, status: str) -> None:
    sink_of(mlflow, tmp_path).send([change("gave_up", kind=kind, failure_class="network", message="why")], [])
    assert mlflow.bodies("runs/update")[-1]["status"] == status


def test_long_files_go_in_parts_and_what_is_no_number_has_a_word(tmp_path: Path, mlflow: Server) -> None:
    write_events(tmp_path, 1, range(1, 600), loss=float("nan"))
    sink_of(mlflow, tmp_path).send([], events_of(tmp_path))
    batches = [body["metrics"] for body in mlflow.bodies("runs/log-batch") if "metrics" in body]
    assert [len(batch) for batch in batches] == [1000, 1000, 397]
    assert batches[0][0]["value"] == "NaN"


def test_nothing_new_asks_nothing(tmp_path: Path, mlflow: Server) -> None:
    sink_of(mlflow, tmp_path).send([], [])
    assert mlflow.asked == []


def test_evaluation_and_gate_stand_in_the_trainings_run(tmp_path: Path, mlflow: Server) -> None:
    sink_of(mlflow, tmp_path).send([change("attempt_began")], [])
    sink_of(mlflow, tmp_path).log_evaluation({"evaluation/tuned_score": 0.9}, {"gate": "passed"}, 5.0)
    told = mlflow.bodies("runs/log-batch")[-1]
    assert told["run_id"] == "run-0"
    assert told["metrics"][0]["step"] == 10
    assert told["tags"] == [{"key": "gate", "value": "passed"}]


def test_a_refusal_and_an_absent_server_are_errors_without_the_address(tmp_path: Path, mlflow: Server) -> None:
    mlflow.status, mlflow.answers = 401, {}
    with pytest.raises(Refused, match="answered 401"):
        sink_of(mlflow, tmp_path).send([change("attempt_began")], [])
    absent = MLflow(facts_of(tmp_path), server_of("http://user:secret@127.0.0.1:9", {}), "team")
    with pytest.raises(ReportError, match="no answer") as failed:
        absent.send([change("attempt_began")], [])
    assert "secret" not in str(failed.value)


def test_credentials_come_from_the_environment(mlflow: Server) -> None:
    server_of(mlflow.url, {"MLFLOW_TRACKING_TOKEN": "t"}).post("runs/update", {})
    basic = {"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}
    server_of(mlflow.url + "/", basic).post("runs/update", {})
    assert [headers["Authorization"] for headers in mlflow.headers] == ["Bearer t", "Basic dTpw"]
    assert mlflow.asked[1][0] == f"{API}/runs/update"


@pytest.mark.parametrize(
    ("arn", "url", "header", "service"),
    [
        (ARN, "https://us-west-2.experiments.sagemaker.aws", "x-mlflow-sm-tracking-server-arn", "sagemaker-mlflow"),
        (APP, "https://mlflow.sagemaker.us-west-2.app.aws", "x-sm-mlflow-app-arn", "sagemaker"),
    ],
)
def test_sagemakers_servers_are_addressed_by_arn_and_signed(
    mlflow: Server, monkeypatch: pytest.MonkeyPatch, arn: str, url: str, header: str, service: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    server = server_of(arn, {})
    assert (server.url, server.headers) == (url, {header: arn})
    Address(mlflow.url, server.headers, server.auth).post("runs/update", {"run_id": "r"})
    told = mlflow.headers[0]
    assert told["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert f"/us-west-2/{service}/aws4_request" in told["Authorization"]
    assert header in told["Authorization"]
    assert len(told["X-Amz-Content-SHA256"]) == 64
