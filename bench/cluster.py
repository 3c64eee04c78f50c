"""What the cluster launcher adds to what Kubernetes itself takes: at the start, at the end, after a fault, and while it waits.

    python -m bench cluster [--sdk PYTHON] [--wait-s 300] [--node-kill]

Needs KUBECONFIG, LORA_E2E_SHARED and the image of the tests (tests/e2e/faults/fault_harness.py says which). A worker that plays a
training, without torch, runs in two real pods. `--sdk`: the Python of an environment with kubeflow-training, whose
`wait_for_job_conditions` watches the same job beside us. Prints JSON lines. Times are taken by this machine's clock alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench._report import report
from steps.protocol.rundir import read_json
from steps.pytorchjob.client import Kube
from steps.pytorchjob.informer import Informer

ROOT = Path(__file__).resolve().parents[1]

SDK = """
import json, sys, time
from kubernetes import client, config, watch
from kubernetes.client import rest
from kubeflow.training import TrainingClient
calls = 0
plain = rest.RESTClientObject.request
def counted(self, *args, **kwargs):
    global calls
    calls += 1
    return plain(self, *args, **kwargs)
rest.RESTClientObject.request = counted
name, namespace = sys.argv[1:]
made = TrainingClient(namespace=namespace, job_kind="PyTorchJob")
begun, calls = time.time(), 0
try:
    made.wait_for_job_conditions(name=name, namespace=namespace, expected_conditions={"Succeeded"}, wait_timeout=7200)
except RuntimeError:
    pass  # it asks every 15 s: by then we have removed the job
print(json.dumps({"ended": time.time(), "begun": begun, "calls": calls}))
"""


class Eye:
    """When something about a job was first seen in the API, by a watch of its own."""

    def __init__(self, namespace: str) -> None:
        self._kube = Kube(namespace)
        self.seen: dict[str, float] = {}
        threading.Thread(target=self._look, args=("pods",), daemon=True).start()
        threading.Thread(target=self._look, args=("pytorchjobs",), daemon=True).start()

    def _look(self, kind: Any) -> None:
        version = self._kube.list(kind).version
        while True:
            for change, item in self._kube.watch(kind, version):
                if change == "BOOKMARK":
                    continue
                name = item["metadata"]["name"]
                self.seen.setdefault(f"{name} {change}", time.time())
                for condition in (item.get("status") or {}).get("conditions") or []:
                    if condition["status"] == "True":
                        self.seen.setdefault(f"{name} {condition['type']}", time.time())
            version = self._kube.list(kind).version

    def when(self, what: str) -> float:
        """Unix time; waits a little for what must have been seen."""
        until_s = time.monotonic() + 20
        while what not in self.seen and time.monotonic() < until_s:
            time.sleep(0.05)
        return self.seen[what]


def said_at(trial: Any, text: str) -> float:
    """When a supervisor printed a line."""
    lines = trial.supervisors[0].output.read_text().splitlines()
    return float(next(line for line in lines if text in line).split()[0])


def undisturbed(shared: Path, eye: Eye, sdk: str) -> None:
    """Start and end of a job that nothing happens to, watched by the SDK too."""
    from tests.e2e.faults.fault_harness import NAMESPACE, Trial

    trial = Trial(shared / f"bench-{time.time_ns()}", {"steps": 40, "step_s": 0.5, "save_every": 10})
    trial.start()
    trial.when_step(1)
    name = trial.objects("pytorchjobs.kubeflow.org")[0]["metadata"]["name"]
    watching = subprocess.Popen([sdk, "-c", SDK, name, NAMESPACE], stdout=subprocess.PIPE, text=True) if sdk else None
    trial.supervisors[0].wait()
    created = max(eye.when(f"{name}-worker-{index} ADDED") for index in range(2))
    report("step start → both pods created", created - said_at(trial, "begins"), unit="s", goal="ours < 1")
    succeeded, known = eye.when(f"{name} Succeeded"), said_at(trial, "is over")
    told = json.loads(watching.communicate(timeout=60)[0].splitlines()[-1]) if watching else {}
    later = told["ended"] - succeeded if told else None
    report("job Succeeded → known, all removed, result published", known - succeeded, later, unit="s", goal="ours < 2")
    if told:
        hours = (told["ended"] - told["begun"]) / 3600
        report("the SDK's API calls per hour", told["calls"] / hours, unit="calls/h")


def killed(shared: Path) -> None:
    """From the death of a rank to the creation of the next attempt's job, with no delay asked for."""
    from tests.e2e.faults.fault_harness import Trial

    settings = {"retry": {"delay_s": 0}}
    play = {
        "steps": 60,
        "step_s": 0.3,
        "save_every": 2,
        "together": True,
        "acts": {"1": {"rank": 1, "step": 5, "act": "crash"}},
    }
    trial = Trial(shared / f"bench-{time.time_ns()}", play, settings=settings)
    trial.start()
    trial.supervisors[0].wait()
    ended = read_json(trial.directory.attempt(1) / "nodes" / "001" / "exit.json")
    first, second = trial.history()[:2]
    died = ended["ranks"]["1"]["finished_s"]
    report("a rank dies → the next job is created", second["created_s"] - died, unit="s", goal="ours <= 10")
    report("  of it: until its keeper, and torchrun, had ended", ended["finished_s"] - died, unit="s")
    report("  of it: from there until the attempt was closed", first["finished_s"] - ended["finished_s"], unit="s")


def node_killed(shared: Path) -> None:
    """From Kubernetes' own verdict on a dead node (its pod is to go) to the creation of the next attempt's job."""
    from tests.e2e.faults.fault_harness import Trial, eventually, tool

    trial = Trial(shared / f"bench-{time.time_ns()}", {"steps": 400, "step_s": 0.5, "save_every": 2, "together": True})
    trial.start()
    trial.when_step(3)
    pod = trial.pod(1)
    number = pod["spec"]["nodeName"].rsplit("-", 1)[-1]
    tool("node-kill", number)
    try:
        eye = Eye(trial.namespace)
        eventually("the next attempt", lambda: len(trial.history()) > 1)
        gone = eye.when(f"{pod['metadata']['name']} DisruptionTarget")
        report(
            "a node's pods are given up → the next job is created",
            trial.history()[1]["created_s"] - gone,
            unit="s",
            goal="ours <= 10",
        )
    finally:
        trial.clean()
        tool("node-start", number)


def waiting(wait_s: float) -> None:
    """API calls of a launcher that waits for a job that does nothing."""
    from tests.e2e.faults.fault_harness import NAMESPACE

    kube = Kube(NAMESPACE)
    informer = Informer(kube, "nothing")
    informer.start()
    time.sleep(5)  # the first look is over
    before = kube.calls
    time.sleep(wait_s)
    report(
        "API calls per hour while waiting", (kube.calls - before) * 3600 / wait_s, unit="calls/h", goal="ours <= 120"
    )
    informer.stop()


class Day:
    """A source that tells of 64 pods for 24 hours, every half minute, as fast as it is read."""

    pods, beats = 64, 24 * 120

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.over = threading.Event()

    def list(self, kind: str, **_: Any) -> Any:
        return type("Listed", (), {"items": (), "version": "0"})

    def watch(self, kind: str, version: str, **_: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if kind == "pytorchjobs":
            threading.Event().wait()
        for beat in range(self.beats):
            for index in range(self.pods):
                status = {"phase": "Running", "beat": beat, "conditions": [{"type": "Ready", "status": "True"}] * 4}
                yield "MODIFIED", {"metadata": {"uid": str(index), "name": f"p-{index}"}, "status": status}
            if beat in (120, self.beats - 1):
                self.held[beat] = tracemalloc.get_traced_memory()[0]
        self.over.set()
        threading.Event().wait()


def day() -> None:
    """Memory of the watch after a day, against that after an hour."""
    tracemalloc.start()
    source = Day()
    informer = Informer(source, "day")
    informer.start()
    source.over.wait(timeout=600)
    first, last = (value / 2**20 for _, value in sorted(source.held.items()))
    report("memory of the watch, 64 workers: after 24 hours, after one", last, first, unit="MiB", goal="ratio <= 1.1")
    tracemalloc.stop()


def main(argv: list[str]) -> int:
    """Measure all of it."""
    parser = argparse.ArgumentParser(prog="python -m bench cluster", description=__doc__)
    parser.add_argument("--sdk", default="", help="Python of an environment with kubeflow-training")
    parser.add_argument("--wait-s", type=float, default=240.0)
    parser.add_argument("--node-kill", action="store_true", help="kill a node too (LORA_E2E_TOOL)")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args(argv)
    from bench.conftest import make_namespace
    from tests.e2e.faults.fault_harness import NAMESPACE, shared_folder

    shared = shared_folder()
    make_namespace(NAMESPACE, shared.parent)
    day()
    beside = threading.Thread(target=waiting, args=(given.wait_s,))
    beside.start()
    for _ in range(given.rounds):
        undisturbed(shared, Eye(NAMESPACE), given.sdk)
        killed(shared)
    beside.join()
    if given.node_kill:
        node_killed(shared)
    return 0
