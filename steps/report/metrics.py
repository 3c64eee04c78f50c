"""Metrics for a team's own dashboards: a Prometheus text file, or OTLP to a collector.

Gauges are exported as they are true now, so an old attempt leaves no series behind. Formats: Prometheus' text exposition format
0.0.4; OpenTelemetry's OTLP/HTTP with JSON bodies (protocol 1.x, `POST <endpoint>/v1/metrics`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from steps.job.job import Change
from steps.protocol.events import Event
from steps.protocol.rundir import write_atomic
from steps.report.sink import Facts, post
from steps.report.state import Gauge, State

FILE = "metrics.prom"
"""In the training's directory."""


def labels_of(facts: Facts) -> dict[str, str]:
    """What every series carries; empty ones are left out."""
    found = {"run": facts.run, "model": facts.model, "dataset": facts.dataset, "namespace": facts.namespace}
    return {name: value for name, value in found.items() if value}


def exposition(gauges: Iterable[Gauge], labels: Mapping[str, str]) -> str:
    """Prometheus' text format."""
    lines = []
    for name, group in groupby(sorted(gauges, key=lambda gauge: gauge.name), key=lambda gauge: gauge.name):
        members = list(group)
        kind = "counter" if members[0].is_counter else "gauge"
        lines += [f"# HELP {name} {members[0].help}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{{{_pairs({**labels, **item.labels})}}} {_number(item.value)}" for item in members]
    return "\n".join([*lines, ""])


def _pairs(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return ("+Inf" if value > 0 else "-Inf") if math.isinf(value) else repr(float(value))


def otlp(gauges: Iterable[Gauge], labels: Mapping[str, str], *, began_s: float, now_s: float) -> dict[str, Any]:
    """An ExportMetricsServiceRequest as JSON. Names as in the text format, without a second translation by the collector.

    What is no number is left out: JSON has none.
    """
    metrics = []
    finite = (gauge for gauge in gauges if math.isfinite(gauge.value))
    for name, group in groupby(sorted(finite, key=lambda gauge: gauge.name), key=lambda gauge: gauge.name):
        members = list(group)
        points = [_point({**labels, **item.labels}, item.value, began_s, now_s) for item in members]
        kind: dict[str, Any] = {"gauge": {"dataPoints": points}}
        if members[0].is_counter:
            kind = {"sum": {"dataPoints": points, "aggregationTemporality": 2, "isMonotonic": True}}
        metrics.append({"name": name, "description": members[0].help, **kind})
    resource = {"attributes": _attributes({"service.name": "hyperpod-lora"})}
    return {
        "resourceMetrics": [
            {"resource": resource, "scopeMetrics": [{"scope": {"name": "hyperpod-lora"}, "metrics": metrics}]}
        ]
    }


def _point(labels: Mapping[str, str], value: float, began_s: float, now_s: float) -> dict[str, Any]:
    times = {"startTimeUnixNano": str(int(began_s * 1e9)), "timeUnixNano": str(int(now_s * 1e9))}
    return {"attributes": _attributes(labels), **times, "asDouble": float(value)}


def _attributes(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]


@dataclass(slots=True)
class Metrics:
    """The sink: a file, a collector, or both."""

    facts: Facts
    to_file: bool = False
    endpoint: str = ""
    """The collector's base address, such as http://hyperpod-otel-collector.hyperpod-observability:4318; empty: none."""
    name: str = "metrics"
    every_s: float = 15.0
    state: State = field(init=False)
    began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.state, self.began_s = State(self.facts.steps), time.time()

    def send(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
        """Bring the state up to date, and export it.

        Raises:
            ReportError: the collector did not take it.
            StorageError: the file cannot be written.
        """
        self.state.advance(changes, events)
        now_s = time.time()
        gauges = list(self.state.gauges(now_s))
        if self.to_file:
            write_atomic(self.facts.folder / FILE, exposition(gauges, labels_of(self.facts)).encode())
        if self.endpoint:
            body = otlp(gauges, labels_of(self.facts), began_s=self.began_s, now_s=now_s)
            post(f"{self.endpoint.rstrip('/')}/v1/metrics", body)

    def close(self) -> None:
        """Nothing is left open."""
