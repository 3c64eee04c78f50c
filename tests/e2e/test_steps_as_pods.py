"""The whole flow, launched from a machine that sees no shared file system: every step is a pod, training is a PyTorchJob."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.cluster_harness import Place, Site, run_id_of, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.devices, pytest.mark.timeout(1800)]

STEPS = ["start", "prepare", "train", "merge", "evaluate", "end"]


@pytest.fixture
def elsewhere(place: Place, site: Site) -> Place:
    """A laptop: its steps are pods, and what the pods share is not among its own files."""
    cluster = site.settings()["cluster"]
    cluster["steps"]["enabled"] = True
    place.write_config(cluster=cluster)
    return place


def test_a_laptop_launches_the_whole_flow_as_pods(elsewhere: Place, site: Site) -> None:
    done = elsewhere.call(elsewhere.words("run"))
    assert done.returncode == 0, done.stdout + done.stderr
    run = elsewhere.run_directory(run_id_of(done.stdout))
    assert "workers started (2 processes)" in done.stdout, done.stdout
    report = next(run.glob("evaluation-*/report.json"))
    assert json.loads(report.read_text())["samples"] == 2
    assert owners(run) == {1000}
    ran = {pod["metadata"].get("annotations", {}).get("metaflow/step_name") for pod in site.items("pods")}
    assert set(STEPS) <= ran
    assert not site.jobs()


@pytest.mark.slow
def test_a_launching_pod_that_dies_is_followed_by_one_that_adopts(elsewhere: Place, site: Site) -> None:
    log = elsewhere.folder / "run.log"
    running = elsewhere.start(elsewhere.words("run", *LONG), log)
    run = trained(elsewhere, log)
    remove_train_pod(site)
    assert running.wait(timeout=900) == 0, log.read_text()
    assert ADOPTED in log.read_text()
    assert attempts(run) == 1
    assert not site.jobs()


@pytest.mark.slow
def test_resume_from_a_laptop_that_died_finds_the_training_again(elsewhere: Place, site: Site) -> None:
    """Its train pod lives on, and is followed; when that one is removed too, the new one adopts."""
    log = elsewhere.folder / "run.log"
    running = elsewhere.start(elsewhere.words("run", *LONG), log)
    run = trained(elsewhere, log)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(timeout=60)
    again = elsewhere.folder / "resume.log"
    resumed = elsewhere.start(elsewhere.words("resume", "--origin-run-id", run.name), again)
    wait_until(lambda: "already watches over this training" in again.read_text(), timeout_s=300, what="it follows")
    remove_train_pod(site)
    assert resumed.wait(timeout=900) == 0, again.read_text()
    assert ADOPTED in again.read_text()
    assert attempts(run) == 1
    assert not site.jobs()


LONG = ["--max-steps", "1500"]
ADOPTED = "attempt 1 is still running; watching over it from here"


def trained(place: Place, log: Path) -> Path:
    """The run's directory, once training is under way."""

    def events() -> list[Path]:
        found = run_id_in(log)
        told = place.run_directory(found).glob("train-*/attempts/*/events.jsonl") if found else ()
        return [path for path in told if '"loss"' in path.read_text()]

    return wait_until(events, timeout_s=600, what="training is under way")[0].parents[3]


def run_id_in(log: Path) -> str:
    """Empty until Metaflow has told."""
    return run_id_of(log.read_text()) if "run-id" in log.read_text() else ""


def remove_train_pod(site: Site) -> None:
    """The oldest pod of the train step that runs."""
    pods = [item for item in site.items("pods") if item["status"]["phase"] == "Running"]
    pods = [item for item in pods if item["metadata"].get("annotations", {}).get("metaflow/step_name") == "train"]
    oldest = min(pods, key=lambda item: str(item["metadata"]["creationTimestamp"]))
    site.kubectl("delete", "pod", oldest["metadata"]["name"], "--grace-period=1")


def attempts(run: Path) -> int:
    """Of the training."""
    (history,) = run.glob("train-*/history.json")
    return len(json.loads(history.read_text())["attempts"])


def owners(folder: Path) -> set[int]:
    """User ids of all files."""
    return {path.stat().st_uid for path in folder.rglob("*")}
