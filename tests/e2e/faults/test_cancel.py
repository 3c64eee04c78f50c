"""`hyperpod-lora cancel` where it is harder: the job is queued (see test_queue), another user asks, the launcher restarts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.faults.conftest import Expect, MakeTrial
from tests.e2e.faults.fault_harness import IMAGE, NAMESPACE, ROOT, Trial, apply, eventually, kubectl
from tests.e2e.faults.test_permissions import account

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

COLLEAGUE, UID, POD_UID = "colleague", 4321, 1000
ENDED = {"Succeeded", "Failed"}


@pytest.fixture
def colleague(namespace: str, tmp_path: Path) -> Iterator[str]:
    """A service account with the launcher's rights."""
    account(COLLEAGUE, "", tmp_path)
    yield COLLEAGUE
    kubectl("-n", NAMESPACE, "delete", "pod,serviceaccount,role,rolebinding", COLLEAGUE, "--ignore-not-found")


def cancelling_pod(training: Trial, account: str) -> dict[str, Any]:
    """`hyperpod-lora cancel` as a pod of another user, who can read the run directory and write nothing there."""
    folders = {
        "/code/steps": ROOT / "steps",
        "/code/config": ROOT / "config",
        sys.prefix: Path(sys.prefix),
        sys.base_prefix: Path(sys.base_prefix),
        str(training.folder): training.folder,
    }
    mounts = [{"name": f"at-{number}", "mountPath": at} for number, at in enumerate(folders)]
    volumes = [
        {"name": f"at-{number}", "hostPath": {"path": str(path)}} for number, path in enumerate(folders.values())
    ]
    words = ["cancel", str(training.folder), "--yes", "--config", str(training.write_config())]
    container = {
        "name": "cancel",
        "image": os.environ.get("LORA_E2E_IMAGE", IMAGE),
        "command": ["python", "-m", "steps.cli", *words],
        "workingDir": "/code",
        "env": [{"name": "PATH", "value": f"{sys.prefix}/bin:/usr/bin:/bin"}, {"name": "HOME", "value": "/tmp"}],
        "securityContext": {"runAsUser": UID, "runAsGroup": UID},
        "volumeMounts": mounts,
    }
    spec = {"serviceAccountName": account, "restartPolicy": "Never", "containers": [container], "volumes": volumes}
    metadata = {"name": account, "namespace": training.namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def give_to(uid: int, folder: Path) -> None:
    """All of it to one user, whom alone it obeys."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, uid)
        path.chmod(path.stat().st_mode & ~0o022)


def test_another_user_cancels_and_the_job_ends_all_the_same(trial: MakeTrial, expect: Expect, colleague: str) -> None:
    training = trial("byother", step_s=0.8)
    training.start()
    training.when_step(5)
    pod = cancelling_pod(training, colleague)
    give_to(POD_UID, training.folder)
    apply(pod)
    where = ["-n", training.namespace]
    phase = [*where, "get", "pod", colleague, "-o", "jsonpath={.status.phase}"]
    eventually("the colleague's command ends", lambda: kubectl(*phase) in ENDED)
    said = kubectl(*where, "logs", colleague)
    assert kubectl(*phase) == "Succeeded", said
    assert "the request cannot be left there" in said
    assert "and its pods are gone" in said
    assert "kept: the checkpoint of step" in said
    expect(
        "cancelled by another user, who may not write the run directory",
        training,
        classes=["preempted"],
        error="JobCancelled",
        reads="No further attempt: somebody cancelled or deleted the job, which means: stop",
    )


def test_a_cancel_while_the_launcher_restarts_is_remembered(trial: MakeTrial, expect: Expect) -> None:
    """A launcher that starts by itself (a moved pod, Metaflow's retry) begins nothing; a person's `resume` goes on."""
    training = trial("restarting")
    training.start()
    training.when_step(5)
    training.supervisors[0].kill()
    said = training.cancel()
    assert "and its pods are gone" in said, said
    training.start()
    expect(
        "cancelled while the launcher restarts",
        training,
        classes=["preempted"],
        error="JobCancelled",
        reads="No further attempt: somebody cancelled or deleted the job, which means: stop",
    )
    assert len(training.history()) == 1
    training.start(resume=True)
    ended = expect("… and resumed by a person", training, classes=["preempted"], reads="-a2: 2 node")
    assert json.dumps(ended["attempts"]) == "2"


def test_a_cancel_in_a_slow_step_waits_for_its_end_and_its_save(trial: MakeTrial, expect: Expect) -> None:
    """A step takes three times the grace period: killed after that, it would be lost."""
    training = trial("slowstep", step_s=15.0, settings={"deadlines": {"grace_s": 5}})
    training.start()
    training.when_step(3)
    said = training.cancel()
    assert "kept: the checkpoint of step 4" in said, said
    expect(
        "cancelled in a step of three times deadlines.grace_s",
        training,
        classes=["preempted"],
        error="JobCancelled",
        reads="cancelled; its workers have .* s to end their step and save",
        lost_at_most=0,
    )
    assert training.history()[0]["complete_step"] == 4
