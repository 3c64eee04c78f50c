"""PyTorchJobs and pods as the API gives them, made up, and a cluster that answers with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steps.errors import ClusterError
from steps.protocol.events import PREFIX, Event
from steps.pytorchjob.client import Listing

BORN_S = 1_700_000_000.0
NAME = "tiny-orders-train-0a1b2c3d-a1"


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(BORN_S + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_job(
    name: str = NAME,
    *,
    run: str = "LoraFlow/17",
    attempt: int = 1,
    born: float = 0.0,
    conditions: tuple[str, ...] = ("Created", "Running"),
    directory: str = "/fsx/runs/LoraFlow/17/train-x",
    **extra: Any,
) -> dict[str, Any]:
    worker = {"replicas": 2, "template": {"spec": {"terminationGracePeriodSeconds": 90}}}
    status = {"conditions": [{"type": kind, "status": "True", "message": f"it is {kind}"} for kind in conditions]}
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"job-{name}",
            "creationTimestamp": stamp(born),
            "labels": {
                "hyperpod-lora/run": run.replace("/", "-"),
                "hyperpod-lora/step": "train",
                "hyperpod-lora/attempt": str(attempt),
            },
            "annotations": {"hyperpod-lora/run": run, "hyperpod-lora/directory": directory},
            **extra,
        },
        "spec": {"nprocPerNode": "2", "runPolicy": {}, "pytorchReplicaSpecs": {"Worker": worker}},
        "status": status,
    }


def make_pod(job: dict[str, Any], index: int, phase: str = "Running", **status: Any) -> dict[str, Any]:
    name = job["metadata"]["name"]
    labels = {"training.kubeflow.org/job-name": name, "training.kubeflow.org/replica-index": str(index)}
    running = {"name": "pytorch", "state": {"running": {"startedAt": stamp(5)}}}
    return {
        "metadata": {"name": f"{name}-worker-{index}", "uid": f"pod-{name}-{index}", "labels": labels},
        "spec": {"nodeName": f"node-{index + 1}"},
        "status": {"phase": phase, "containerStatuses": [running] if phase == "Running" else [], **status},
    }


def event_lines(steps: int, *, of: int = 10, since: float = 10.0) -> list[str]:
    """Rank 0's events: two steps a second, the model loaded at once."""
    found = [
        Event("started", BORN_S + since, 1, 0, {"of": of, "world": 4}),
        Event("model_loaded", BORN_S + since, 1, 0, {"parameters": 1000, "trainable": 10}),
    ]
    for step in range(1, steps + 1):
        data = {"of": of, "loss": 1.0 / step, "tokens_per_s": 200.0, "seconds": 0.5}
        found.append(Event("first_step" if step == 1 else "step", BORN_S + since + step / 2, 1, step, data))
    return [PREFIX + event.to_line() for event in found]


@dataclass
class FakeCluster:
    """The calls of `kube.Kube` that the commands make."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    namespace: str = "ns"
    deleted: list[str] = field(default_factory=list)
    looks_until_gone: int = 0
    """How often a deleted job's pods are still seen; -1: always."""

    def list(self, kind: str, *, label_selector: str, patience_s: float | None = None) -> Listing:
        items = self.jobs if kind == "pytorchjobs" else self.pods
        wanted = label_selector.partition("job-name=")[2]
        if wanted:
            self._look()
            items = [pod for pod in self.pods if pod["metadata"]["name"].startswith(wanted)]
        return Listing(tuple(items), "1")

    def _look(self) -> None:
        if self.deleted and self.looks_until_gone == 0:
            self.jobs = [job for job in self.jobs if job["metadata"]["name"] not in self.deleted]
            self.pods = [pod for pod in self.pods if not pod["metadata"]["name"].startswith(tuple(self.deleted))]
        self.looks_until_gone -= self.looks_until_gone > 0

    def job(self, name: str) -> dict[str, Any] | None:
        return next((job for job in self.jobs if job["metadata"]["name"] == name), None)

    def delete(self, name: str) -> None:
        self.deleted.append(name)

    def events(self, name: str) -> list[dict[str, Any]]:
        said = self.warnings.get(name)
        return [{"type": "Warning", "reason": "FailedCreatePod", "message": said}] if said else []

    def log(self, pod: str, *, lines: int) -> str:
        return "\n".join(self.logs.get(pod, [])[-lines:])

    def follow_log(self, pod: str, *, lines: int) -> Iterator[str]:
        if pod not in self.logs:
            raise ClusterError(f"following the log of pod {pod}: it is gone")
        yield from self.logs[pod][-lines:]


def visible(folder: Path) -> dict[str, Any]:
    """A job whose training directory can be seen."""
    return make_job(directory=str(folder))


def running(job: dict[str, Any] | None = None, **given: Any) -> FakeCluster:
    """A cluster on which both pods of a job run, four steps in."""
    job = job or make_job()
    pods = [make_pod(job, 0), make_pod(job, 1)]
    return FakeCluster([job], pods, {f"{NAME}-worker-0": ["hello", *event_lines(4)]}, **given)
