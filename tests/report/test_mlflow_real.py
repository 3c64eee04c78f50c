"""The sink and the registry against MLflow's own server, killed in the middle. `MLFLOW_EXECUTABLE` names its command:

uv venv /tmp/mlflow && uv pip install --python /tmp/mlflow/bin/python mlflow==3.17.2   # beside ours: it wants another pyarrow
MLFLOW_EXECUTABLE=/tmp/mlflow/bin/mlflow python -m pytest -m slow tests/report/test_mlflow_real.py
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from steps.publish.registry import Entry, in_mlflow, run_in_mlflow
from steps.report import pump as pumping
from steps.report.mlflow import API, MLflow, server_of
from steps.report.reporter import Reporter
from tests.report.standin import change, facts_of, write_events

EXECUTABLE = os.environ.get("MLFLOW_EXECUTABLE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not EXECUTABLE, reason="MLFLOW_EXECUTABLE does not name MLflow's command"),
]
START_S = 240


class Real:
    """MLflow's server with its records in SQLite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "1"}
        store = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/m.db",
            "--artifacts-destination",
            str(self.folder / "a"),
        ]
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [EXECUTABLE, "server", *store, *place],
                env={**os.environ, **quiet, "PYTHONPATH": ""},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until_s = time.monotonic() + START_S
        while not self.is_up():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < until_s
            time.sleep(0.3)

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=2).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def get(self, route: str, **params: str) -> Any:
        return requests.get(f"{self.url}{API}/{route}", params=params, timeout=10).json()

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        rows = self.get("metrics/get-history", run_id=run, metric_key=metric, max_results="10000").get("metrics", [])
        return sorted((int(row["step"]), row["value"]) for row in rows)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    server = Real(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


def sink_of(real: Real, folder: Path) -> MLflow:
    return MLflow(facts_of(folder), server_of(real.url, {}), "team", every_s=0.2)


def wait_for(condition: Any, what: str, timeout_s: float = 60) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.1)


def test_one_run_over_attempts_a_resume_and_a_server_that_is_killed(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pumping, "REST_S", 0.5)
    sink = sink_of(real, tmp_path)
    reporter = Reporter(tmp_path, [sink])
    write_events(tmp_path, 1, range(1, 6))
    reporter.tell(change("attempt_began", nodes=2))
    wait_for(lambda: sink.run and len(real.history(sink.run, "train/loss")) == 5, "the first attempt's steps")

    real.kill()
    reporter.tell(
        change("attempt_ended", failure_class="node", message="gone", node="n1", spent_s=5.0, complete_step=5)
    )
    write_events(tmp_path, 2, range(6, 9), time_s=2000.0)
    reporter.tell(change("attempt_began", 2, 2000.0))
    heard: list[str] = []

    def is_told() -> bool:
        heard.extend(reporter.sentences())
        return any("the training goes on without it" in line for line in heard)

    wait_for(is_told, "the trouble")
    real.start()
    wait_for(lambda: len(real.history(sink.run, "train/loss")) == 8, "what was missed")
    assert any("answers again" in line for line in reporter.close())

    write_events(tmp_path, 3, range(9, 11), time_s=3000.0)
    again = Reporter(tmp_path, [other := sink_of(real, tmp_path)])
    again.tell(change("attempt_began", 3, 3000.0))
    again.tell(change("finished", 3, 3100.0, step=10, account={"goodput": 0.5}))
    assert again.close() == []
    assert other.run == sink.run

    assert real.history(sink.run, "train/loss") == [(step, 1.0 / step) for step in range(1, 11)]
    run = real.get("runs/get", run_id=sink.run)["run"]
    assert run["info"]["status"] == "FINISHED"
    assert {item["key"]: item["value"] for item in run["data"]["params"]} == {"training.seed": "42"}
    assert run["inputs"]["dataset_inputs"][0]["dataset"]["digest"] == "d" * 36
    question = {"experiment_ids": [run["info"]["experiment_id"]], "filter": f"tags.`mlflow.parentRunId` = '{sink.run}'"}
    found = requests.post(f"{real.url}{API}/runs/search", json=question, timeout=10).json()["runs"]
    statuses = {item["info"]["run_name"]: item["info"]["status"] for item in found}
    assert statuses == {"attempt 1": "FAILED", "attempt 2": "RUNNING", "attempt 3": "RUNNING"}
    first = next(item for item in found if item["info"]["run_name"] == "attempt 1")
    assert {tag["key"]: tag["value"] for tag in first["data"]["tags"]}["node"] == "n1"


def test_what_is_no_number_and_the_evaluation_arrive(real: Real, tmp_path: Path) -> None:
    write_events(tmp_path, 1, range(1, 3), loss=float("nan"))
    sink = MLflow(facts_of(tmp_path), server_of(real.url, {}), "other team")
    from tests.report.test_metrics import events_of

    sink.send([change("attempt_began")], events_of(tmp_path))
    sink.log_evaluation({"evaluation/tuned_score": 0.9}, {"gate": "passed"}, 5000.0)
    told = real.get("runs/get", run_id=sink.run)["run"]["data"]
    values = {item["key"]: item["value"] for item in told["metrics"]}
    assert values["evaluation/tuned_score"] == 0.9
    assert str(values["train/loss"]).lower() == "nan"
    assert {tag["key"]: tag["value"] for tag in told["tags"]}["gate"] == "passed"


def test_a_published_model_is_a_version_of_the_trainings_run(real: Real, tmp_path: Path) -> None:
    sink = sink_of(real, tmp_path)
    sink.send([change("attempt_began")], [])
    run = run_in_mlflow(real.url, {}, "team", sink.facts.key)
    assert run == sink.run
    entry = Entry("shop-7b", "s3://team/models/shop-7b/abc", "merged", {"digest": "abc", "gate": "passed: 0 % → 94 %"})
    assert [in_mlflow(real.url, {}, entry, run) for _ in range(2)] == ["1", "1"]
    other = Entry("shop-7b", "s3://team/models/shop-7b/def", "merged", {"digest": "def"})
    assert in_mlflow(real.url, {}, other) == "2"
    version = real.get("model-versions/get", name="shop-7b", version="1")["model_version"]
    assert (version["source"], version["run_id"], version["status"]) == (f"{entry.source}", run, "READY")
