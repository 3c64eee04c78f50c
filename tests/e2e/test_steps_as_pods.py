"""The whole flow, launched from a machine that sees no shared file system: every step is a pod, training is a PyTorchJob."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.cluster_harness import Place, Site, run_id_of, wait_until
from tests.e2e.faults.fault_table import Row, versions, write_row

pytestmark = [pytest.mark.cluster, pytest.mark.devices, pytest.mark.timeout(1800)]

STEPS = ["start", "prepare", "train", "merge", "evaluate", "end"]


@pytest.fixture
def elsewhere(place: Place, site: Site) -> Place:
    """A laptop: its steps are pods, and what the pods share is not among its own files."""
    cluster = site.settings()["cluster"]
    cluster["steps"]["enabled"] = True
    cluster["lease_s"] = 300  # on a busy machine the next launching pod takes minutes to come
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
def test_a_launching_pod_that_is_evicted_and_one_that_runs_out_of_memory(elsewhere: Place, site: Site) -> None:
    """One after the other in one run: Metaflow tries a step three times."""
    log = elsewhere.folder / "run.log"
    running = elsewhere.start(elsewhere.words("run", *LONG), log)
    run = trained(elsewhere, log)
    evict(site, launching_pod(site))
    wait_until(lambda: log.read_text().count(ADOPTED) == 1, timeout_s=300, what="the second one adopts")
    name = launching_pod(site)
    run_out_of_memory(site, name)
    wait_until(lambda: log.read_text().count(ADOPTED) == 2, timeout_s=300, what="the third one adopts")
    assert "OOMKilled" in json.dumps(site.items("pods")), name
    assert running.wait(timeout=900) == 0, log.read_text()
    assert attempts(run) == 1
    assert not site.jobs()
    for fault in ("the launching step's pod is evicted", "the launching step's pod runs out of memory"):
        write_row(Row(fault, "–", f"tiny-orders: {ADOPTED}", 1, 0, 0, versions()))


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

    return wait_until(events, timeout_s=1200, what="training is under way")[0].parents[3]


def run_id_in(log: Path) -> str:
    """Empty until Metaflow has told."""
    return run_id_of(log.read_text()) if "run-id" in log.read_text() else ""


def remove_train_pod(site: Site) -> None:
    site.kubectl("delete", "pod", launching_pod(site), "--grace-period=1")


def evict(site: Site, name: str) -> None:
    """As a drain does."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": site.namespace}}
    path = f"/api/v1/namespaces/{site.namespace}/pods/{name}/eviction"
    site.kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(body))


GREED = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    if b"lora_flow" in open(f"/proc/{pid}/cmdline", "rb").read():
        open(f"/proc/{pid}/oom_score_adj", "w").write("1000")
eaten = []
while True:
    eaten.append(bytearray(os.urandom(1024)) * 2**12)
"""
"""The kernel kills whom it is told to prefer, not who eats."""


def run_out_of_memory(site: Site, name: str) -> None:
    """The launching pod's memory is eaten up; the launcher is whom the kernel kills for it."""
    with contextlib.suppress(AssertionError):  # it may be killed itself a moment later
        site.kubectl("exec", name, "--", "python", "-c", GREED)


def launching_pod(site: Site) -> str:
    """The oldest pod of the train step that runs."""
    pods = [item for item in site.items("pods") if item["status"]["phase"] == "Running"]
    pods = [item for item in pods if item["metadata"].get("annotations", {}).get("metaflow/step_name") == "train"]
    pods = [item for item in pods if not item["metadata"].get("deletionTimestamp")]
    return str(min(pods, key=lambda item: str(item["metadata"]["creationTimestamp"]))["metadata"]["name"])


def attempts(run: Path) -> int:
    """Of the training."""
    (history,) = run.glob("train-*/history.json")
    return len(json.loads(history.read_text())["attempts"])


def owners(folder: Path) -> set[int]:
    """User ids of all files."""
    return {path.stat().st_uid for path in folder.rglob("*")}
