"""The command line against a real cluster: a job looked at, followed and cancelled; a manifest applied by hand and adopted.

KUBECONFIG names the cluster; LORA_E2E_IMAGE an image that its nodes have, LORA_E2E_NAMESPACE a namespace with the claim
LORA_E2E_CLAIM (`fsx-claim`), LORA_E2E_SHARED where that claim is mounted here and in the pods. The image takes the virtual
environment that runs this test from the nodes' own disks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.base import stage as base_stage
from steps.flow import launchers
from steps.flow.training import Inputs
from steps.job.job import Job
from steps.job.lease import detach
from steps.job.supervise import Outside, supervise
from steps.prepare import stage as prepare_stage
from steps.protocol.rundir import RunDir, write_json
from steps.pytorchjob import manifest as pytorchjob
from steps.pytorchjob.spec import Code
from steps.settings.config import Settings, parse_options, parse_settings
from steps.settings.resolve import resolve
from tests.e2e.supervise_on_cluster import archive_code

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 300.0


@pytest.fixture
def run() -> Iterator[RunDir]:
    """A run directory on the shared file system; the jobs that the test leaves are deleted."""
    if "KUBECONFIG" not in os.environ or "LORA_E2E_SHARED" not in os.environ:
        pytest.skip("KUBECONFIG and LORA_E2E_SHARED are not set: this needs a cluster")
    before = os.umask(0)  # the pods run as another user
    unique = uuid.uuid4().hex[:8]
    folder = Path(os.environ["LORA_E2E_SHARED"]) / f"cli-{unique}" / "LoraFlow" / str(int(unique, 16))
    folder.mkdir(parents=True)
    yield RunDir(folder)
    os.umask(before)
    label = pytorchjob.label_value(f"LoraFlow/{folder.name}")
    for job in kubectl("get", "pytorchjobs", "-l", f"hyperpod-lora/run={label}", "-o", "name").split():
        kubectl("delete", job, "--wait=false", "--ignore-not-found")


def named(run: RunDir) -> str:
    return f"LoraFlow/{run.path.name}"


def namespace() -> str:
    return os.environ.get("LORA_E2E_NAMESPACE", "kubeflow")


def kubectl(*words: str, given: str = "") -> str:
    done = subprocess.run(
        ["kubectl", "-n", namespace(), *words], input=given, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def raw_settings(run: RunDir) -> dict[str, Any]:
    """Two nodes, two processes each, on the mounted environment."""
    venv, python = Path(sys.prefix), Path(sys.base_prefix)
    mounts = [
        {"name": name, "mount_path": str(path), "host_path": str(path)}
        for name, path in (("venv", venv), ("python", python))
    ]
    root = run.path.parents[1]
    return {
        "storage": {"root": str(root), "cache": str(root / "cache"), "min_free_gib": 0},
        "launcher": {"kind": "pytorchjob", "threads_per_process": 1},
        "cluster": {
            "namespace": namespace(),
            "image": os.environ.get("LORA_E2E_IMAGE", "localhost/hyperpod-lora:mounted"),
            "require_healthy_nodes": False,
            "nodes": 2,
            "cpu": 0.2,
            "memory_gib": 2,
            "shared_memory_gib": 1,
            "claim": os.environ.get("LORA_E2E_CLAIM", "fsx-claim"),
            "mount_path": os.environ["LORA_E2E_SHARED"],
            "lease_s": 60,
            "environment": {"PATH": f"{venv}/bin:/usr/bin:/bin"},
            "volumes": mounts,
        },
        "deadlines": {"startup_s": 240, "grace_s": 20, "exit_s": 120},
        "checkpoints": {"every_steps": 2, "keep": 3},
    }


def call(run: RunDir, *words: str, code: int = 0) -> str:
    """`hyperpod-lora` as a person calls it; stdout and stderr."""
    config = run.path / "config.yaml"
    config.write_text(yaml.safe_dump(raw_settings(run)))
    done = subprocess.run(
        [sys.executable, "-m", "steps.cli", words[0], "--config", str(config), *words[1:]],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def wait_for(condition: Callable[[], Any]) -> Any:
    until_s = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < until_s, "it never came true"
        time.sleep(1)
    return found


def start_playing(run: RunDir, settings: Settings) -> str:
    """A job that plays a long training, without a supervisor; its name."""
    play = {"steps": 5000, "step_s": 0.2, "save_every": 5}
    directory = run.train("play")
    job = Job(
        "play_worker",
        {"schema": "play", "play": play},
        directory,
        "play",
        5000,
        processes=2,
        nodes=2,
        label="tiny-play",
    )
    write_json(directory.spec, dict(job.spec))
    detach(job.directory, 1)
    spec = launchers.spec_of(settings, run=named(run), step="train", code=archive_code(run.path / "code"))
    manifest = pytorchjob.build(spec, job, 1)
    kubectl("create", "-f", "-", given=json.dumps(manifest))
    return str(manifest["metadata"]["name"])


def test_a_job_is_looked_at_followed_and_cancelled(run: RunDir) -> None:
    name = start_playing(run, parse_settings(raw_settings(run)))
    wait_for(lambda: "progress   step" in call(run, "status", named(run)))
    told = call(run, "status", name)
    assert f"{named(run)}, train: running, attempt 1, 2 nodes × 2 processes" in told
    assert f"{namespace()}/{name}" in told
    assert "goodput" in told
    assert "step 1" not in call(run, "status", "nothing", code=1)

    log = call(run, "logs", named(run), "--lines", "5")
    assert log.count("step ") == 5
    assert "@hyperpod-lora" in call(run, "logs", named(run), "--lines", "5", "--raw")
    assert "has ranks 0 to 3" in call(run, "logs", named(run), "--rank", "4", code=1)
    follow_some_lines(run, 20)

    said = call(run, "cancel", named(run), "--yes")
    assert f"{name} and its pods are gone" in said
    assert "kept: the checkpoint of step" in said
    assert kubectl("get", "pods", "-l", f"training.kubeflow.org/job-name={name}", "-o", "name") == ""
    assert '"stopping"' in run.train("play").events(1).read_text()
    assert "new, step" in call(run, "status", named(run))  # its directory tells, now that the job is gone


def follow_some_lines(run: RunDir, wanted: int) -> None:
    """`logs --follow` gives lines while they are written."""
    words = ["logs", named(run), "-f", "--lines", "1", "--config", str(run.path / "config.yaml")]
    command = [sys.executable, "-m", "steps.cli", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout
        steps = [int(next(following.stdout).split("/")[0].removeprefix("step ")) for _ in range(wanted)]
        following.terminate()
    assert steps == list(range(steps[0], steps[0] + wanted))


@pytest.mark.smoke
def test_a_manifest_applied_by_hand_trains_and_is_adopted(run: RunDir) -> None:
    settings = parse_settings(raw_settings(run))
    options = parse_options(
        {
            "model": "tiny",
            "dataset": "orders",
            "max_steps": 10,
            "max_rows": 120,
            "global_batch": 4,
            "micro_batch": 1,
            "precision": "fp32",
        }
    )
    plan, cache = resolve(settings, options), Path(settings.storage.cache)
    base = base_stage.fetch(plan.model, cache=cache, min_free_gib=0)
    inputs = Inputs(plan, base, prepare_stage.prepare(plan, base, run, cache=cache))
    inputs.save(run)

    text = call(run, "jobspec", "--write", "--run", run.path.name)
    assert call(run, "jobspec", "--write", "--run", run.path.name) == text  # not begun yet: the same once more
    applied = kubectl("apply", "-f", "-", given=text)
    assert "created" in applied
    _, job = inputs.job(run)
    wait_for(lambda: (job.directory.attempt(1) / "nodes").is_dir())
    assert "has begun" in call(run, "jobspec", "--write", "--run", run.path.name, code=1)

    notices: list[str] = []
    kube = launchers.connect(settings, notice=notices.append)
    code = Code("/not/used/by/an/adopted/job", "0" * 64)
    spec = launchers.spec_of(settings, run=named(run), step="train", code=code)
    launcher = launchers.cluster_launcher(kube, spec, notice=notices.append)
    result = supervise(job, launcher, settings, Outside(notice=notices.append), retry_permanent=True, lease_s=60.0)
    assert (result.attempts, result.step) == (1, 10)
    assert (result.result_dir / "adapter_model.safetensors").is_file()
    assert any("attempt 1 is still running" in item or "attempt 1 ended while nobody" in item for item in notices)


def test_the_manifest_without_a_cluster_is_one_that_the_cluster_takes(run: RunDir) -> None:
    command = [sys.executable, "-m", "steps.cli", "jobspec", "--model", "llama3", "--dataset", "alpaca"]
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    manifest = yaml.safe_load(text)
    manifest["metadata"]["namespace"] = namespace()
    said = kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", given=json.dumps(manifest))
    assert "created (server dry run)" in said
