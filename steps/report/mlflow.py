"""MLflow: one run over all attempts and resumes, attempts as its child runs. By MLflow's REST interface, version 2.0.

The client library tries a call again for 4 to 20 minutes and brings a dozen packages; these few routes need neither. Metrics
carry the event's own time, which makes telling them twice harmless (MLflow's key is run, name, time, step and value). Open
servers are addressed by URL, SageMaker's by ARN. Credentials come from the environment of the launching step only.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.job.job import Change
from steps.protocol.events import Event
from steps.report.sink import Facts, Refused, get, post
from steps.report.tensorboard import numbers_of

API = "/api/2.0/mlflow"
KEY = "hyperpod-lora.train"
"""Tag by which a run is found again."""
MOST_METRICS = 1000
"""MLflow's limit of one log-batch."""
MOST_PARAMS = 100
LONGEST_VALUE = 5000
LONGEST_DIGEST = 36
ARN = re.compile(r"arn:aws[\w-]*:sagemaker:([\w-]+):\d+:mlflow-(tracking-server|app)/.+")
STATUS = {"gave_up": "FAILED", "finished": "FINISHED"}


@dataclass(slots=True)
class Server:
    """Where MLflow is, and how one is known there."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    auth: Any = None

    def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """Call a route.

        Raises:
            ReportError: no answer, or a refusal.
        """
        return post(f"{self.url}{API}/{route}", body, headers=self.headers, auth=self.auth)

    def get(self, route: str, **params: str) -> Any:
        """Read a route.

        Raises:
            ReportError: no answer, or a refusal.
        """
        return get(f"{self.url}{API}/{route}", params=params, headers=self.headers, auth=self.auth)


def server_of(address: str, environment: Mapping[str, str]) -> Server:
    """The server at a URL or a SageMaker ARN, with the credentials that the environment has."""
    if found := ARN.fullmatch(address):
        return _sagemaker(address, region=found[1], is_app=found[2] == "app")
    token, user = environment.get("MLFLOW_TRACKING_TOKEN"), environment.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return Server(address.rstrip("/"), {"Authorization": f"Bearer {token}"})
    auth = (user, environment.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
    return Server(address.rstrip("/"), auth=auth)


def _sagemaker(arn: str, *, region: str, is_app: bool) -> Server:
    """Signed requests, as SageMaker's own plug-in for MLflow makes them."""
    from steps.report.sigv4 import SigV4

    if is_app:
        return Server(
            f"https://mlflow.sagemaker.{region}.app.aws", {"x-sm-mlflow-app-arn": arn}, SigV4("sagemaker", region)
        )
    headers = {"x-mlflow-sm-tracking-server-arn": arn}
    return Server(f"https://{region}.experiments.sagemaker.aws", headers, SigV4("sagemaker-mlflow", region))


@dataclass(slots=True)
class MLflow:
    """The sink."""

    facts: Facts
    server: Server
    experiment: str
    name: str = "mlflow"
    every_s: float = 10.0
    run: str = ""
    """MLflow's id of the training's run; empty: not known yet."""
    children: dict[int, str] = field(default_factory=dict)
    """By attempt."""

    def send(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
        """Tell all of it.

        Raises:
            ReportError: the server is away, or refused.
        """
        if not changes and not events:
            return
        self.run = self.run or self._find_or_make()
        for change in changes:
            self._hear(change)
        for batch in chunks(metrics_of(events), MOST_METRICS):
            self.server.post("runs/log-batch", {"run_id": self.run, "metrics": batch})

    def close(self) -> None:
        """Nothing is left open."""

    def _hear(self, change: Change) -> None:
        if change.kind == "attempt_began":
            self.server.post("runs/update", {"run_id": self.run, "status": "RUNNING"})
            self._child(change)
        elif change.kind == "attempt_ended":
            self._end_child(change)
        elif change.kind in STATUS:
            status = "KILLED" if change.data.get("kind") == "cancelled" else STATUS[change.kind]
            account = _metrics(account_numbers(change.data.get("account", {})), change.time_s, 0)
            tags = _tags({"hyperpod-lora.verdict": str(change.data.get("message", ""))})
            self.server.post("runs/log-batch", {"run_id": self.run, "metrics": list(account), "tags": tags})
            self.server.post(
                "runs/update", {"run_id": self.run, "status": status, "end_time": int(change.time_s * 1000)}
            )

    def find(self) -> str:
        """MLflow's id of the training's run; empty: there is none.

        Raises:
            ReportError: the server is away, or refused.
        """
        return self._search(self._experiment(), self.facts.key)

    def _find_or_make(self) -> str:
        experiment = self._experiment()
        if found := self._search(experiment, self.facts.key):
            return found
        run = self._create(experiment, self.facts.key, self.facts.run, {})
        params = [{"key": key, "value": value[:LONGEST_VALUE]} for key, value in self.facts.values.items()]
        for batch in chunks(params, MOST_PARAMS):
            self.server.post("runs/log-batch", {"run_id": run, "params": batch})
        self._log_data(run)
        return run

    def _experiment(self) -> str:
        try:
            found = self.server.get("experiments/get-by-name", experiment_name=self.experiment)
            return str(found["experiment"]["experiment_id"])
        except Refused as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return str(self.server.post("experiments/create", {"name": self.experiment})["experiment_id"])

    def _search(self, experiment: str, key: str) -> str:
        question = {"experiment_ids": [experiment], "filter": f"tags.`{KEY}` = '{key}'", "max_results": 1}
        runs = self.server.post("runs/search", question).get("runs") or []
        return str(runs[0]["info"]["run_id"]) if runs else ""

    def _create(self, experiment: str, key: str, name: str, tags: Mapping[str, str]) -> str:
        told = {KEY: key, "mlflow.runName": name, "model": self.facts.model, "dataset": self.facts.dataset}
        body = {"experiment_id": experiment, "run_name": name, "tags": _tags({**told, **self.facts.links, **tags})}
        return str(self.server.post("runs/create", body)["run"]["info"]["run_id"])

    def _log_data(self, run: str) -> None:
        data = {"name": self.facts.dataset, "digest": self.facts.data_digest[:LONGEST_DIGEST]}
        given = {"tags": [{"key": "mlflow.data.context", "value": "training"}]}
        source = {"source_type": "hyperpod-lora", "source": self.facts.values.get("data.source", self.facts.dataset)}
        self.server.post("runs/log-inputs", {"run_id": run, "datasets": [{**given, "dataset": {**data, **source}}]})

    def _child(self, change: Change) -> str:
        attempt = change.attempt
        if attempt not in self.children:
            experiment, key = self._experiment(), f"{self.facts.key}/{attempt}"
            tags = {"mlflow.parentRunId": self.run, "nodes": str(change.data.get("nodes", ""))}
            found = self._search(experiment, key)
            self.children[attempt] = found or self._create(experiment, key, f"attempt {attempt}", tags)
        return self.children[attempt]

    def _end_child(self, change: Change) -> None:
        child, told = self._child(change), change.data
        names = ("failure_class", "message", "node", "rank")
        tags = _tags({name: str(told[name]) for name in names if told.get(name) not in (None, "")})
        numbers = {name: told[name] for name in ("spent_s", "complete_step") if told.get(name) is not None}
        self.server.post(
            "runs/log-batch", {"run_id": child, "tags": tags, "metrics": list(_metrics(numbers, change.time_s, 0))}
        )
        status = "FAILED" if told.get("failure_class") else "FINISHED"
        self.server.post("runs/update", {"run_id": child, "status": status, "end_time": int(change.time_s * 1000)})

    def log_evaluation(self, numbers: Mapping[str, float], tags: Mapping[str, str], time_s: float) -> None:
        """Scores and gate, on the training's run.

        Raises:
            ReportError: the server is away, or refused.
        """
        run = self._find_or_make()
        metrics = list(_metrics(numbers, time_s, self.facts.steps))
        self.server.post("runs/log-batch", {"run_id": run, "metrics": metrics, "tags": _tags(tags)})


def chunks(items: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """The items in lists of at most `size`."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def metrics_of(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """Every number of these events."""
    for event in events:
        yield from _metrics(numbers_of(event), event.time_s, event.step)


def _metrics(numbers: Mapping[str, float], time_s: float, step: int) -> Iterator[dict[str, Any]]:
    for key, value in numbers.items():
        yield {"key": key, "value": _plain(value), "timestamp": int(time_s * 1000), "step": step}


def _plain(value: float) -> float | str:
    """JSON has no word for what is no number; the interface takes these."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _tags(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value[:LONGEST_VALUE]} for key, value in values.items() if value]


def account_numbers(account: Mapping[str, Any]) -> dict[str, float]:
    """The account's plain numbers, by name."""
    return {f"account/{key}": float(value) for key, value in account.items() if isinstance(value, int | float)}
