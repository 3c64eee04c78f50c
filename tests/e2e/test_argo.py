"""The flow on the real Argo controller: end to end, a retried step that adopts, a terminated one that leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster_harness import SMALL, Place, Site, kubectl, run_id_of, wait_until
from tests.e2e.faults.fault_table import Row, versions, write_row

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.devices, pytest.mark.timeout(2400)]

WORKFLOWS, TEMPLATES = "workflows.argoproj.io", "workflowtemplates.argoproj.io"
LONG = ["--max-steps", "1000"]
LEASE_S = 60.0
ENDS = {"Succeeded", "Failed", "Error"}


@pytest.fixture
def argo(place: Place, site: Site) -> Iterator[Place]:
    """The flow deployed; its workflows are removed afterwards."""
    if WORKFLOWS not in kubectl("get", "customresourcedefinitions", "--output=name"):
        pytest.skip("Argo Workflows is not on this cluster")
    cluster = site.settings()["cluster"] | {"lease_s": LEASE_S}
    cluster["steps"]["enabled"] = True
    place.write_config(cluster=cluster)
    done = place.call(place.words("argo-workflows create --no-auto-emit-argo-events"))
    assert done.returncode == 0, done.stdout + done.stderr
    yield place
    site.kubectl("delete", f"{WORKFLOWS},{TEMPLATES}", "--all", "--wait=false", "--ignore-not-found")


def trigger(place: Place, *options: str) -> str:
    """Start the deployed flow; the workflow's name."""
    done = place.call(place.words("argo-workflows trigger", *SMALL, *options))
    assert done.returncode == 0, done.stdout + done.stderr
    return run_id_of(done.stdout + done.stderr).removeprefix("argo-")


def workflow(site: Site, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.kubectl("get", WORKFLOWS, name, "--output=json"))
    return found


def phase(site: Site, name: str) -> str:
    return str(workflow(site, name).get("status", {}).get("phase", ""))


def nodes(site: Site, name: str) -> dict[str, str]:
    """Phase of each step's template, the newest pod's where it was retried."""
    found = workflow(site, name).get("status", {}).get("nodes", {}).values()
    return {node["displayName"]: node["phase"] for node in found}


def tries(site: Site, name: str, step: str) -> list[tuple[str, str]]:
    """(name, phase) of each try of a step, the first first: `train(0)` is of retry count 0."""
    found = workflow(site, name).get("status", {}).get("nodes", {}).values()
    return sorted((node["displayName"], node["phase"]) for node in found if node["displayName"].startswith(f"{step}("))


def ended(site: Site, name: str, *, timeout_s: float = 1500) -> str:
    """How the workflow ended."""
    wait_until(lambda: phase(site, name) in ENDS, timeout_s=timeout_s, what=f"workflow {name} ends", poll_s=2)
    return phase(site, name)


def step_pods(site: Site, name: str, step: str) -> list[dict[str, Any]]:
    """All pods of one step, retries included."""
    pods = site.items("pods", f"workflows.argoproj.io/workflow={name}")
    return [pod for pod in pods if pod["metadata"]["annotations"].get("metaflow/step_name") == step]


def training_runs(place: Place, name: str, *, steps: int) -> bool:
    """Has rank 0 told of so many steps?"""
    run = place.run_directory(f"argo-{name}")
    lines = [line for events in run.glob("train-*/attempts/*/events.jsonl") for line in events.read_text().splitlines()]
    return sum('"step"' in line and '"loss"' in line for line in lines) >= steps


def tail(site: Site, name: str) -> str:
    """What the workflow's pods said last, for a failing test."""
    return "\n".join(
        site.kubectl("logs", pod["metadata"]["name"], "--container=main", "--tail=40", "--ignore-errors")
        for pod in site.items("pods", f"workflows.argoproj.io/workflow={name}")
    )


def test_a_deployed_flow_runs_from_start_to_end(argo: Place, site: Site) -> None:
    name = trigger(argo)
    (job,) = wait_until(site.jobs, timeout_s=900, what="training is submitted", poll_s=1)
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Workflow", name)
    assert ended(site, name) == "Succeeded", tail(site, name)
    assert not site.jobs()
    run = argo.run_directory(f"argo-{name}")
    assert json.loads(next(run.glob("evaluation-*/report.json")).read_text())["samples"] == 2


def test_a_dry_run_ends_after_the_plan(argo: Place, site: Site) -> None:
    name = trigger(argo, "--dry-run", "True")
    assert ended(site, name) == "Succeeded", tail(site, name)
    assert nodes(site, name)["end"] == "Succeeded"
    assert nodes(site, name)["train"] in ("Omitted", "Skipped")
    assert not site.jobs()


def test_a_restarted_and_then_retried_step_adopts_the_training_that_runs(argo: Place, site: Site) -> None:
    """A pod that vanishes is made anew by Argo, still as try 0; one that fails is followed by try 1."""
    name = trigger(argo, *LONG)
    wait_until(lambda: training_runs(argo, name, steps=3), timeout_s=900, what="training is under way", poll_s=1)
    remove_train_pod(site, name, "--grace-period=0", "--force")
    wait_until(lambda: ADOPTED in train_says(site, name), timeout_s=300, what="the pod made anew adopts", poll_s=1)
    remove_train_pod(site, name, "--grace-period=1")

    assert ended(site, name) == "Succeeded", tail(site, name)
    assert ADOPTED in train_says(site, name)
    assert [item for item, _ in tries(site, name, "train")] == ["train(0)", "train(1)"]
    assert attempts(argo, name) == 1
    assert not site.jobs()
    fault = "Argo: the launching step's pod vanishes, then its next one fails"
    write_row(Row(fault, "–", f"tiny-orders: {ADOPTED}", 1, 0, 0, versions()))


ADOPTED = "attempt 1 is still running; watching over it from here"


def remove_train_pod(site: Site, name: str, *how: str) -> None:
    (pod,) = step_pods(site, name, "train")
    site.kubectl("delete", "pod", pod["metadata"]["name"], *how)


def train_says(site: Site, name: str) -> str:
    """The newest train pod's log; empty while there is none to read."""
    pods = sorted(step_pods(site, name, "train"), key=lambda pod: pod["metadata"]["creationTimestamp"])
    newest = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] != "Pending"][-1:]
    return site.kubectl("logs", *newest, "--container=main") if newest else ""


def test_a_training_that_failed_for_good_answers_retries_at_once_and_argo_retry_begins_anew(
    argo: Place, site: Site
) -> None:
    name = trigger(argo, "--lora-alpha", "1e30")  # the first gradient overflows
    assert ended(site, name) == "Failed", tail(site, name)
    assert tries(site, name, "train") == [(f"train({count})", "Failed") for count in range(3)]
    assert "This is remembered from before; nothing was started" in train_says(site, name)
    assert attempts(argo, name) == 1

    if "LORA_E2E_ARGO_RETRY" not in os.environ:
        pytest.skip(
            "LORA_E2E_ARGO_RETRY (a program: workflow on stdin, as `argo retry` would send it on stdout) is not set"
        )
    argo_retry(site, name)
    assert ended(site, name) == "Failed", tail(site, name)
    assert attempts(argo, name) == 2, "the retry count began at 0, so the old verdict did not bind"


def argo_retry(site: Site, name: str) -> None:
    """What `argo retry` does: the failed nodes are reset, their pods deleted, the workflow sent back."""
    given = json.dumps(workflow(site, name))
    program = os.environ["LORA_E2E_ARGO_RETRY"]
    again = subprocess.run([program], input=given, capture_output=True, text=True, check=True).stdout
    of_workflow = f"--selector=workflows.argoproj.io/workflow={name}"
    site.kubectl("delete", "pod", of_workflow, "--field-selector=status.phase=Failed")
    site.kubectl("replace", "--filename=-", stdin=again)
    wait_until(lambda: phase(site, name) not in ENDS, timeout_s=60, what="it runs again")


def attempts(place: Place, name: str) -> int:
    (history,) = place.run_directory(f"argo-{name}").glob("train-*/history.json")
    return len(json.loads(history.read_text())["attempts"])


def test_a_terminated_workflow_leaves_nothing_running(argo: Place, site: Site) -> None:
    name = trigger(argo, "--max-steps", "4000")
    wait_until(lambda: training_runs(argo, name, steps=3), timeout_s=900, what="training is under way", poll_s=1)
    done = argo.call(argo.words("argo-workflows terminate", f"argo-{name}"))
    assert done.returncode == 0, done.stdout + done.stderr
    grace_s = site.settings()["deadlines"]["grace_s"]
    wait_until(lambda: not live_workers(site), timeout_s=LEASE_S + grace_s + 60, what="the workers are gone", poll_s=1)
    assert checkpoints(argo.run_directory(f"argo-{name}")), "they save before they go"

    (job,) = site.jobs()  # its evidence stays for a look
    pods = site.items("pods", f"training.kubeflow.org/job-name={job['metadata']['name']}")
    said = [str(item["status"]["containerStatuses"][0]["state"]["terminated"].get("message")) for item in pods]
    assert any('"reason": "lease"' in words for words in said), said
    site.kubectl("delete", WORKFLOWS, name)
    wait_until(lambda: not site.jobs(), timeout_s=120, what="the job goes with its workflow")
    words = f"{job['metadata']['name']}: Failed; its pods say {said[0]}"
    write_row(Row("Argo: the workflow is terminated, then deleted", "preempted", words, 1, 0, 0, versions()))


def live_workers(site: Site) -> list[str]:
    """Pods of the training that still run."""
    pods = site.items("pods", "app.kubernetes.io/managed-by=hyperpod-lora")
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]


def checkpoints(run: Path) -> list[Path]:
    """Complete ones."""
    return sorted(run.glob("train-*/checkpoints/*/COMPLETE.json"))
