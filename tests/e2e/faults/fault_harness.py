"""One fault on a real cluster: a supervisor as a process of its own, what it said, what it left. For the tests of this folder.

KUBECONFIG names the cluster; from the environment besides: LORA_E2E_IMAGE (of the pods; its packages may come from the virtual
environment of the tests, which is mounted), LORA_E2E_SHARED (a folder that this machine and the nodes see at the same path),
LORA_E2E_TOOL (a program that can `node-kill N`, `node-start N`, `api-stop`, `api-start`). A namespace of its own is made.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from steps.protocol import checkpoints
from steps.protocol.events import Event, parse_line
from steps.protocol.rundir import TrainDir, read_json
from steps.pytorchjob.manifest import label_value

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).parents[1] / "supervise_on_cluster.py"
NAMESPACE = os.environ.get("LORA_E2E_FAULTS", "hyperpod-ns-faults")
"""Another name for whoever shares a cluster with other people's tests."""
CLAIM = "fsx-claim"
IMAGE = "localhost/hyperpod-lora:mounted"
PATIENCE_S = 400.0
"""For what takes seconds on a machine that is not busy."""
USUAL: dict[str, Any] = {
    "deadlines": {"startup_s": 400, "grace_s": 10, "step_gap_s": 120, "exit_s": 200, "deletion_s": 120},
    "retry": {"delay_s": 0.5, "max_delay_s": 1},
    "checkpoints": {"every_steps": 2, "keep": 3},
}


def kubectl(*arguments: str, given: str = "", check: bool = True) -> str:
    """What kubectl prints."""
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def apply(*objects: Mapping[str, Any]) -> None:
    """Create or change objects."""
    listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    kubectl("apply", "-f", "-", given=json.dumps(listed))


def tool(*arguments: str) -> None:
    """Do something to the cluster itself."""
    program = os.environ.get("LORA_E2E_TOOL")
    if not program:
        pytest.skip("LORA_E2E_TOOL is not set: nothing here can stop a node or the API")
    subprocess.run([program, *arguments], check=True, timeout=300, capture_output=True)


def hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def shared_folder() -> Path:
    """The folder that this machine and all pods see."""
    given = os.environ.get("LORA_E2E_SHARED")
    if not given or not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG and LORA_E2E_SHARED are not set: see fault_harness")
    folder = Path(given) / "faults"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    return folder


def eventually(what: str, ask: Callable[[], Any], *, limit_s: float = PATIENCE_S) -> Any:
    """The first answer that is not empty."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        if answer := ask():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {limit_s:.0f} s")


@dataclass
class Supervisor:
    """A running `supervise_on_cluster.py`."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> list[str]:
        """Its lines so far, without time stamps and events."""
        lines = self.output.read_text().splitlines()
        return [line.split(" ", 1)[-1] for line in lines if " event " not in line[:25] and not line.startswith("{")]

    def wait(self, limit_s: float = 1200.0) -> dict[str, Any]:
        """Its last line: the result, or the error."""
        self.process.wait(timeout=limit_s)
        last = self.output.read_text().strip().splitlines()[-1]
        return dict(json.loads(last)) if last.startswith("{") else {"error": "crash", "message": last}

    def when_said(self, text: str, limit_s: float = PATIENCE_S) -> str:
        """The first line with `text`."""
        return str(
            eventually(
                f"{text!r} in {self.output}", lambda: next((x for x in self.said() if text in x), ""), limit_s=limit_s
            )
        )

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


@dataclass
class Trial:
    """One training, and all that belongs to it."""

    folder: Path
    play: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    namespace: str = NAMESPACE
    nodes: int = 2
    settings: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    """Of the plan."""
    supervisors: list[Supervisor] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def label(self) -> str:
        """What its jobs are called."""
        return str(self.more.get("label", self.name))

    @property
    def directory(self) -> TrainDir:
        return TrainDir(next(self.folder.glob("train-*"), self.folder / "train-play"))

    @property
    def selector(self) -> str:
        return f"hyperpod-lora/run={label_value(f'E2e/{self.name}')}"

    def start(self, *, resume: bool = False, kubeconfig: str = "", **changes: Any) -> Supervisor:
        """Another supervisor of this training; `changes` of the cluster's settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o777)
        number = len(self.supervisors)
        plan, output = self.folder / f"plan-{number}.json", self.folder / f"supervisor-{number}.log"
        plan.write_text(json.dumps(self._plan(changes)))
        environment = {**os.environ, **({"KUBECONFIG": kubeconfig} if kubeconfig else {})}
        command = [sys.executable, str(PROGRAM), str(plan), *(["resume"] if resume else [])]
        with output.open("wb") as file:
            # A shell's background job ignores SIGINT, and so would its children: Ctrl-C is one of the faults.
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, preexec_fn=hear_ctrl_c)
        self.supervisors.append(Supervisor(process, output))
        return self.supervisors[-1]

    def _plan(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        shared = str(self.folder.parent.parent)
        mounts = {"venv": sys.prefix, "python": sys.base_prefix}
        cluster = {
            "namespace": self.namespace,
            "image": os.environ.get("LORA_E2E_IMAGE", IMAGE),
            "nodes": self.nodes,
            "cpu": 0.2,
            "memory_gib": 1,
            "shared_memory_gib": 0.5,
            "claim": CLAIM,
            "mount_path": shared,
            "lease_s": 60,
            "require_healthy_nodes": True,
            "environment": {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin"},
            "volumes": [{"name": key, "mount_path": path, "host_path": path} for key, path in mounts.items()],
        }
        cluster |= {**self.settings.get("cluster", {}), **changes}
        folder = str(self.folder)
        settings = {
            "storage": {"root": folder, "cache": f"{folder}/cache", "min_free_gib": 0},
            "launcher": {"kind": "pytorchjob", "threads_per_process": 1, **self.settings.get("launcher", {})},
            **{key: {**value, **self.settings.get(key, {})} for key, value in USUAL.items()},
            "cluster": cluster,
        }
        what = {"training": self.training} if self.training else {"play": self.play}
        return {
            "folder": folder,
            "nodes": self.nodes,
            "processes": 1,
            "label": self.label,
            "settings": settings,
            **what,
            **self.more,
        }

    def events(self, attempt: int) -> list[Event]:
        """What an attempt's workers told so far."""
        path = self.directory.events(attempt)
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [event for event in map(parse_line, lines) if event]

    def when_step(self, step: int, *, attempt: int = 1) -> None:
        """Wait until a step is done."""
        eventually(
            f"{self.name}: step {step} of attempt {attempt}",
            lambda: any(event.step >= step for event in self.events(attempt)),
        )

    def write_config(self) -> Path:
        """The settings of its first supervisor, as a person's Config."""
        config = self.folder / "config.yaml"
        config.write_text(json.dumps(json.loads((self.folder / "plan-0.json").read_text())["settings"]))
        return config

    def cancel(self) -> str:
        """What `hyperpod-lora cancel` says."""
        words = ["cancel", str(self.folder), "--yes", "--config", str(self.write_config())]
        command = [sys.executable, "-m", "steps.cli", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """This training's objects."""
        listed = kubectl("-n", self.namespace, "get", kind, "-l", self.selector, "-o", "json")
        return list(json.loads(listed)["items"])

    def pod(self, index: int = 0) -> dict[str, Any]:
        """A worker's pod."""
        label = "training.kubeflow.org/replica-index"
        return dict(next(item for item in self.objects("pods") if item["metadata"]["labels"][label] == str(index)))

    def kill_rank(self, rank: int, number: int = 9, *, attempt: int = 1) -> None:
        """A signal to a rank, inside its pod."""
        pid = read_json(self.directory.attempt(attempt) / "nodes" / f"{rank:03d}" / f"rank-{rank}.json")["pid"]
        name = self.pod(rank)["metadata"]["name"]
        kubectl("-n", self.namespace, "exec", name, "--", "python", "-SEc", f"import os; os.kill({pid}, {number})")

    def history(self) -> list[dict[str, Any]]:
        """All attempts, as remembered."""
        return list(read_json(self.directory.history)["attempts"])

    def steps_lost(self) -> int:
        """Steps that were done and had to be done again, of all attempts."""
        lost, done = 0, 0
        for item in self.history():
            events = self.events(item["number"])
            if not events:
                continue
            lost += max(0, done - events[0].step)
            done = max(event.step for event in events)
        return lost

    def left(self) -> list[str]:
        """Jobs, pods and services that are still there."""
        kinds = "pytorchjobs.kubeflow.org,pods,services"
        names = kubectl("-n", self.namespace, "get", kinds, "-o", "name").splitlines()
        return [name for name in names if f"/{self.label}-" in name]

    def damaged(self) -> list[str]:
        """Complete checkpoints that are not what they say."""
        found = (checkpoints.read(path) for path in checkpoints.directories(self.directory.checkpoints))
        return [why for item in found if isinstance(item, checkpoints.Checkpoint) and (why := checkpoints.damage(item))]

    def clean(self) -> None:
        """Whatever the test left."""
        for supervisor in self.supervisors:
            if supervisor.process.poll() is None:
                supervisor.kill()
        kubectl(
            "-n", self.namespace, "delete", "pytorchjobs.kubeflow.org", "-l", self.selector, "--wait=false", check=False
        )
