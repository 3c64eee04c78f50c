"""A namespace on a real Kubernetes, and the flow run against it as a person does: used by the tests in this folder.

KUBECONFIG names the cluster (the Training Operator must be there); `kubectl` must be on the PATH. What else differs from one
cluster to the next comes from the environment:

    LORA_E2E_IMAGE       image of all pods, known to the nodes. The flow's own pods get one that is built from
                         containers/cpu.Dockerfile where LORA_E2E_TOOL can do that, unless LORA_E2E_HOST_VENV says what to mount
    LORA_E2E_HOST_VENV   virtual environment on the nodes' own disks to mount into these pods, its interpreter beside it; default:
                         the one that runs the tests, for an image that is built; empty: the image has it all
    LORA_E2E_NAMESPACE   an existing namespace with claim, service account and roles; default: one is made, and removed
    LORA_E2E_CLAIM       its ReadWriteMany claim; default: `fsx-claim`
    LORA_E2E_SHARED      where that claim is mounted on this machine, and at the same path in the pods; default: a folder of this
                         machine that the nodes see too (they run here)
    LORA_E2E_HOST        address of this machine that pods reach; default: 10.99.0.1
    LORA_E2E_TOOL        program that can `image IMAGE DOCKERFILE CONTEXT`, `node-kill N`, `node-start N`, `api-stop`, `api-start`
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
FLOW = PROJECT / "flows" / "lora_flow.py"
MANIFESTS = PROJECT / "config" / "cluster"
MANIFEST_NAMESPACE = "hyperpod-ns-research"
"""What the shipped manifests say; replaced by the test's own."""
LABEL = "hyperpod-lora/e2e"
OWN_IMAGE = "localhost/hyperpod-lora-e2e:mounted"
POD_USER = 1000
CLAIM, ACCOUNT, BUCKET_SECRET = "fsx-claim", "hyperpod-lora", "object-storage"
SMALL = shlex.split(
    "--model tiny --max-steps 12 --max-rows 120 --sequence-length 256 --global-batch 4 --micro-batch 1 "
    "--precision fp32 --lora-dropout 0.1"
)
"""Options of a training that takes seconds."""


@dataclass(frozen=True)
class Mount:
    """A folder of the nodes that all pods see at its own path, read by everyone and written by none."""

    claim: str
    path: Path


@dataclass(frozen=True)
class Site:
    """Where the tests run."""

    namespace: str
    image: str
    shared: Path
    """On this machine and in all pods."""
    claim: str
    mounts: tuple[Mount, ...]
    store: Mapping[str, str]
    """Environment of whoever uses the object storage."""

    def kubectl(self, *words: str, stdin: str = "", timeout_s: float = 180) -> str:
        """Output of kubectl in the test's namespace; a failure is told with what it said."""
        return kubectl("--namespace", self.namespace, *words, stdin=stdin, timeout_s=timeout_s)

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind."""
        chosen = ("--selector", selector) if selector else ()
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *chosen, "--output=json"))["items"]
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """All PyTorchJobs."""
        return self.items("pytorchjobs.kubeflow.org")

    def settings(self, **changes: Mapping[str, Any]) -> dict[str, Any]:
        """The Config of a small run on two nodes; `changes` by section."""
        made: dict[str, dict[str, Any]] = {
            "storage": {"root": str(self.shared / "runs"), "cache": str(self.shared / "cache"), "min_free_gib": 0},
            "launcher": {"kind": "pytorchjob", "backend": "torch", "threads_per_process": 1},
            "cluster": self._cluster(),
            "deadlines": {"startup_s": 600, "model_load_s": 600, "first_step_s": 600, "exit_s": 120, "grace_s": 60},
            "retry": {"delay_s": 0.1},
            "checkpoints": {"every_steps": 3},
            "evaluation": {"max_rows": 2, "max_loss_rows": 4},
        }
        for section, values in changes.items():
            made[section] = {**made.get(section, {}), **values}
        return made

    def _cluster(self) -> dict[str, Any]:
        return {
            "namespace": self.namespace,
            "image": self.image,
            "instance_type": "trn1.32xlarge",
            "nodes": 2,
            "cpu": 0.2,
            "memory_gib": 2,
            "shared_memory_gib": 0.25,
            "claim": self.claim,
            "mount_path": str(self.shared),
            "run_as_user": POD_USER,
            "lease_s": 60,
            "name_wait_s": 120,
            "api_patience_s": 120,
            "volumes": [
                {"name": f"host-{number}", "claim": mount.claim, "mount_path": str(mount.path)}
                for number, mount in enumerate(self.mounts)
            ],
            "steps": {
                "enabled": False,
                "service_account": ACCOUNT,
                "cpu": 0.2,
                "memory_gib": 2,
                "secrets": [BUCKET_SECRET],
            },
        }


@dataclass(frozen=True)
class Place:
    """A folder of this machine for one test: Config, Metaflow's records, logs."""

    site: Site
    folder: Path
    environment: Mapping[str, str]

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def write_config(self, **changes: Mapping[str, Any]) -> None:
        """`Site.settings` as the Config."""
        self.config.write_text(yaml.safe_dump(self.site.settings(**changes)))

    def words(self, command: str, *options: str) -> list[str]:
        """The flow's command line with the Config; `run` gets the options of a small training."""
        small = SMALL if command == "run" else []
        given = [] if command == "resume" else ["--config", "config", str(self.config)]
        return [sys.executable, str(FLOW), *given, *shlex.split(command), *small, *options]

    def call(self, words: Sequence[str], *, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env=dict(self.environment),
            umask=0,  # the pods are another user
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own, so that the whole group can be killed."""
        with log.open("wb") as file:
            return subprocess.Popen(
                words,
                cwd=self.folder,
                env=dict(self.environment),
                umask=0,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run_directory(self, run_id: str) -> Path:
        return self.site.shared / "runs" / "LoraFlow" / run_id


def kubectl(*words: str, stdin: str = "", timeout_s: float = 180) -> str:
    """Output of kubectl."""
    done = subprocess.run(
        ["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"kubectl {shlex.join(words)}: {done.stderr.strip()}"
    return done.stdout


def tool(*words: str, timeout_s: float = 1200) -> str:
    """Output of LORA_E2E_TOOL."""
    command = [*shlex.split(os.environ["LORA_E2E_TOOL"]), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def apply(*objects: Mapping[str, Any]) -> None:
    """Create or change objects."""
    kubectl("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def shipped(name: str, namespace: str) -> list[dict[str, Any]]:
    """Manifests of config/cluster, for another namespace; what lies outside of one gets a name and a label of its own."""
    text = (MANIFESTS / name).read_text(encoding="utf-8").replace(MANIFEST_NAMESPACE, namespace)
    found = [item for item in yaml.safe_load_all(text) if item]
    for item in found:
        if item["kind"].startswith("Cluster"):
            item["metadata"]["name"] += f"-{namespace}"
            item["metadata"].setdefault("labels", {})[LABEL] = namespace
        if item["kind"] == "ClusterRoleBinding":
            item["roleRef"]["name"] += f"-{namespace}"
    return found


def folder_volume(namespace: str, claim: str, folder: Path, *, kind: str = "Directory") -> list[dict[str, Any]]:
    """A folder of the nodes' disks as a claim: volume and claim, bound to each other."""
    size = {"storage": "100Gi"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{claim}", "labels": {LABEL: namespace}},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": str(folder), "type": kind},
        },
    }
    claimed = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": f"{namespace}-{claim}",
            "resources": {"requests": size},
        },
    }
    return [volume, claimed]


def builds_image() -> bool:
    """Whether the flow's pods get an image that is built for these tests."""
    return "LORA_E2E_TOOL" in os.environ and "LORA_E2E_HOST_VENV" not in os.environ


def host_mounts() -> tuple[Mount, ...]:
    """The virtual environment and its interpreter, as LORA_E2E_HOST_VENV says."""
    venv = os.environ.get("LORA_E2E_HOST_VENV", sys.prefix if builds_image() else "")
    if not venv:
        return ()
    home = re.search(r"^home = (.*)$", (Path(venv) / "pyvenv.cfg").read_text(), re.MULTILINE)
    assert home, f"{venv} is no virtual environment"
    return (Mount("host-venv", Path(venv)), Mount("host-python", Path(home[1]).parent))


def mounted_dockerfile(venv: Path) -> str:
    """The CPU image without packages, its PATH led to a mounted virtual environment."""
    text = (PROJECT / "containers" / "cpu.Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^ARG TORCH=.*$", "ARG TORCH=mounted", text, flags=re.MULTILINE)
    return text + f'ENV PATH="{venv}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n'


def wait_until(check: Any, *, timeout_s: float, what: str, poll_s: float = 0.2) -> Any:
    """The first true value of `check`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(poll_s)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def run_id_of(output: str) -> str:
    """The id in Metaflow's own first lines."""
    found = re.search(r"run-id (\S+?)\)|\[(\d{10,})/", output)
    assert found, output[-2000:]
    return found[1] or found[2]
