"""What the cluster says, translated: raw job and pods → phase, reason, words. The shapes are those of a real cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steps.job.snapshot import JobSnapshot, Phase, Reason
from steps.protocol.events import PREFIX
from steps.protocol.failure_record import FailureRecord
from steps.pytorchjob.snapshot import View, has_conditions, snapshot_of_cluster

BEGUN, ENDED = "2026-11-26T01:00:00Z", "2026-11-26T01:00:10Z"
ENDED_S = 1795654810.0


def job(
    *true: str, false: tuple[str, ...] = (), suspend: bool = False, deleting: bool = False, message: str = ""
) -> dict[str, Any]:
    conditions = [{"type": kind, "status": "True", "message": message} for kind in true]
    conditions += [{"type": kind, "status": "False"} for kind in false]
    metadata = {"name": "j", "uid": "j1", **({"deletionTimestamp": ENDED} if deleting else {})}
    return {"metadata": metadata, "spec": {"runPolicy": {"suspend": suspend}}, "status": {"conditions": conditions}}


def pod(
    index: int = 0,
    phase: str = "Running",
    *,
    state: dict[str, Any] | None = None,
    conditions: tuple[dict[str, Any], ...] = (),
    deleting: bool = False,
    **status: Any,
) -> dict[str, Any]:
    labels = {"training.kubeflow.org/replica-index": str(index)}
    metadata = {"name": f"j-worker-{index}", "uid": f"p{index}", "labels": labels}
    metadata |= {"deletionTimestamp": ENDED} if deleting else {}
    shown = {"running": {"startedAt": BEGUN}} if phase == "Running" and state is None else state or {}
    statuses = [{"name": "istio", "state": {}}, {"name": "pytorch", "state": shown}]
    inside = {"phase": phase, "containerStatuses": statuses, "conditions": list(conditions), **status}
    return {"metadata": metadata, "spec": {"nodeName": f"node-{index}"}, "status": inside}


def terminated(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {
        "terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": BEGUN, "finishedAt": ENDED}
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def disrupted(reason: str) -> dict[str, Any]:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "said the platform"}


def unscheduled(message: str) -> dict[str, Any]:
    return {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}


def look(found: dict[str, Any] | None, *pods: dict[str, Any], nodes: int = 2, **view: Any) -> JobSnapshot:
    return snapshot_of_cluster(View(found, pods, nodes, 32, **view))


RUNNING = job("Created", "Running")
PHASES: dict[str, tuple[JobSnapshot, Phase, Reason]] = {
    "no job": (look(None), Phase.GONE, Reason.NONE),
    "no job, but its pods": (look(None, pod(0)), Phase.GONE, Reason.NONE),
    "just made": (look({"metadata": {}, "spec": {}}), Phase.STARTING, Reason.NONE),
    "a pod runs, one does not": (look(RUNNING, pod(0), pod(1, "Pending")), Phase.STARTING, Reason.NONE),
    "one pod of two is there": (look(RUNNING, pod(0)), Phase.STARTING, Reason.NONE),
    "all run": (look(RUNNING, pod(0), pod(1)), Phase.RUNNING, Reason.NONE),
    "one is done": (
        look(RUNNING, pod(0), pod(1, "Succeeded", state=terminated(0, "Completed"))),
        Phase.STARTING,
        Reason.NONE,
    ),
    "succeeded": (
        look(job("Created", "Succeeded", false=("Running",)), pod(0, "Succeeded")),
        Phase.SUCCEEDED,
        Reason.NONE,
    ),
    "failed": (
        look(job("Failed", message="1 failed"), pod(0, deleting=True), pod(1, "Failed", state=terminated(1))),
        Phase.FAILED,
        Reason.NONE,
    ),
    "failed, nobody knows why": (look(job("Failed", message="1 failed"), pod(0), pod(1)), Phase.FAILED, Reason.NONE),
    "failed, a pod is gone": (look(job("Failed"), pod(0, deleting=True)), Phase.FAILED, Reason.RECREATED),
    "failed, a pod is going": (look(job("Failed"), pod(0), pod(1, deleting=True)), Phase.FAILED, Reason.RECREATED),
    "failed, all pods are gone": (look(job("Failed")), Phase.FAILED, Reason.RECREATED),
    "suspended before it ran": (look(job("Created", "Suspended", suspend=True)), Phase.QUEUED, Reason.NONE),
    "suspended by its spec alone": (look(job(suspend=True)), Phase.QUEUED, Reason.NONE),
    "suspended after it ran": (
        look(job("Suspended", false=("Running",), suspend=True)),
        Phase.FAILED,
        Reason.PREEMPTED,
    ),
    "a pod failed, the operator is away": (
        look(RUNNING, pod(0), pod(1, "Failed", state=terminated(1))),
        Phase.FAILED,
        Reason.NONE,
    ),
    "a pod failed without a container": (
        look(RUNNING, pod(0), pod(1, "Failed", reason="Evicted")),
        Phase.FAILED,
        Reason.NONE,
    ),
    "refused by a LimitRange": (
        look(job(), hint="FailedCreatePod: pods is forbidden: maximum cpu usage per Container is 1, but limit is 2"),
        *(Phase.FAILED, Reason.CONFIG),
    ),
    "refused by PodSecurity": (
        look(
            job(), hint='FailedCreatePod: pods is forbidden: violates PodSecurity "restricted:latest": seccompProfile'
        ),
        *(Phase.FAILED, Reason.CONFIG),
    ),
    "no such service account yet": (
        look(job(), hint='FailedCreatePod: pods "x" is forbidden: error looking up service account: not found'),
        *(Phase.STARTING, Reason.CONFIG),
    ),
    "all are done, a sidecar is not": (
        look(RUNNING, pod(0, state=terminated(0)), pod(1, state=terminated(0))),
        *(Phase.SUCCEEDED, Reason.NONE),
    ),
    "quota": (look(job("Created"), hint="FailedCreatePod: exceeded quota: tight"), Phase.STARTING, Reason.CONFIG),
    "no room": (
        look(job("Created"), pod(0, "Pending", conditions=(unscheduled("0/2 nodes are available"),))),
        Phase.STARTING,
        Reason.NONE,
    ),
}


@pytest.mark.parametrize("name", PHASES)
def test_phase_and_reason(name: str) -> None:
    found, phase, reason = PHASES[name]
    assert (found.phase, found.reason) == (phase, reason)
    assert found.is_refused == name.startswith("refused by")


FULL_DISK = (
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. "
    "Container pytorch was using {}, request is 0, has larger consumption of ephemeral-storage. "
)
PODS: dict[str, tuple[dict[str, Any], Reason, str, bool]] = {
    "runs": (pod(), Reason.NONE, "", False),
    "exit 1": (pod(0, "Failed", state=terminated(1, message="last line")), Reason.NONE, "last line", True),
    "exit 1 after events": (
        pod(0, "Failed", state=terminated(1, message=f"why\n{PREFIX}{{}}\n")),
        Reason.NONE,
        "why",
        True,
    ),
    "out of memory": (pod(0, "Failed", state=terminated(137, "OOMKilled")), Reason.OUT_OF_MEMORY, "", True),
    "node lost": (pod(conditions=(disrupted("DeletionByTaintManager"),)), Reason.NODE, "said the platform", True),
    "drained": (pod(conditions=(disrupted("EvictionByEvictionAPI"),)), Reason.PREEMPTED, "said the platform", True),
    "disrupted in a new way": (pod(conditions=(disrupted("Unheard"),)), Reason.NONE, "", False),
    "evicted": (pod(0, "Failed", reason="Evicted", message="disk pressure"), Reason.NODE, "disk pressure", True),
    "no such image, so far": (
        pod(0, "Pending", state=waiting("ErrImagePull", "manifest unknown")),
        Reason.IMAGE,
        "ErrImagePull: manifest unknown",
        False,
    ),
    "slow registry": (
        pod(0, "Pending", state=waiting("ErrImagePull", "i/o timeout")),
        Reason.NONE,
        "ErrImagePull: i/o timeout",
        False,
    ),
    "image name": (pod(0, "Pending", state=waiting("InvalidImageName")), Reason.IMAGE, "", True),
    "no such secret, so far": (
        pod(0, "Pending", state=waiting("CreateContainerConfigError", 'secret "x"')),
        Reason.CONFIG,
        'CreateContainerConfigError: secret "x"',
        False,
    ),
    "the kubelet could not ask for a secret": (
        pod(0, "Pending", state=waiting("CreateContainerConfigError", "failed to sync secret cache: timed out")),
        Reason.NONE,
        "CreateContainerConfigError: failed to sync secret cache: timed out",
        False,
    ),
    "starts": (pod(0, "Pending", state=waiting("ContainerCreating")), Reason.NONE, "", False),
    "no room": (pod(0, "Pending", conditions=(unscheduled("no room"),)), Reason.UNSCHEDULABLE, "no room", False),
    "no claim": (
        pod(0, "Pending", conditions=(unscheduled('persistentvolumeclaim "x" not found'),)),
        *(Reason.CONFIG, 'persistentvolumeclaim "x" not found', False),
    ),
    "rejected: no room after all": (
        pod(0, "Failed", state={}, reason="OutOfaws.amazon.com/neuron", message="Node didn't have enough resource"),
        *(Reason.NODE, "OutOfaws.amazon.com/neuron: Node didn't have enough resource", True),
    ),
    "rejected: the node's labels changed": (
        pod(0, "Failed", state={}, reason="NodeAffinity", message="Pod was rejected: labels do not match"),
        *(Reason.NODE, "NodeAffinity: Pod was rejected: labels do not match", True),
    ),
    "rejected: by every node": (
        pod(0, "Failed", state={}, reason="SysctlForbidden", message="forbidden sysctl"),
        *(Reason.CONFIG, "SysctlForbidden: forbidden sysctl", True),
    ),
    "a container before it failed": (
        pod(
            0,
            "Failed",
            state=waiting("PodInitializing"),
            initContainerStatuses=[{"name": "mesh-init", "state": terminated(3, message="iptables: no")}],
        ),
        *(Reason.INIT, "mesh-init exited with code 3: iptables: no", True),
    ),
    "a container before it cannot start": (
        pod(
            0,
            "Pending",
            state=waiting("PodInitializing"),
            initContainerStatuses=[{"name": "mesh-init", "state": waiting("ErrImagePull", "no such host")}],
        ),
        *(Reason.IMAGE, "ErrImagePull: no such host", False),
    ),
    "evicted for its own limit": (
        pod(
            0,
            "Failed",
            reason="Evicted",
            message='Container pytorch exceeded its local ephemeral storage limit "1Gi". ',
        ),
        *(Reason.OWN_STORAGE, 'Container pytorch exceeded its local ephemeral storage limit "1Gi". ', True),
    ),
    "evicted for its memory volume": (
        pod(0, "Failed", reason="Evicted", message='Usage of EmptyDir volume "shm" exceeds the limit "64Mi". '),
        *(Reason.OWN_STORAGE, 'Usage of EmptyDir volume "shm" exceeds the limit "64Mi". ', True),
    ),
    "evicted for what it wrote": (
        pod(0, "Failed", reason="Evicted", message=FULL_DISK.format("90Gi")),
        *(Reason.OWN_STORAGE, FULL_DISK.format("90Gi"), True),
    ),
    "evicted for what others wrote": (
        pod(0, "Failed", reason="Evicted", message=FULL_DISK.format("28Ki")),
        *(Reason.NODE, FULL_DISK.format("28Ki"), True),
    ),
    "asked to stop": (
        pod(0, "Failed", state=terminated(143, message='{"reason": "lease", "message": "m"}')),
        Reason.LEASE,
        "m",
        True,
    ),
    "other words": (pod(0, "Failed", state=terminated(1, message='{"reason": "new"}')), Reason.NONE, "", True),
    "words that are no object": (pod(0, "Failed", state=terminated(1, message="[1]")), Reason.NONE, "[1]", True),
}


@pytest.mark.parametrize("name", PODS)
def test_a_pods_reason_and_words(name: str) -> None:
    raw, reason, message, ends = PODS[name]
    found = look(RUNNING, raw, nodes=1)
    assert (found.workers[0].reason, found.workers[0].message) == (reason, message)
    assert (found.phase is Phase.FAILED) == ends


def test_a_worker_is_its_pods_first_rank_with_times_and_node() -> None:
    failed = pod(1, "Failed", state=terminated(137, "OOMKilled"))
    worker = look(RUNNING, failed, pod(0)).workers[1]
    assert (worker.rank, worker.name, worker.node, worker.exit_code) == (32, "j-worker-1", "node-1", 137)
    assert (worker.started_s, worker.finished_s) == (ENDED_S - 10, ENDED_S)


def test_a_failure_record_in_the_termination_message_is_read() -> None:
    record = FailureRecord("storage", "no space", "OSError", 3, "n", 7, 66, 1.0)
    found = look(RUNNING, pod(0, "Failed", state=terminated(66, message=record.short())), nodes=1)
    assert found.workers[0].message == "OSError: no space"


def test_words_about_pods_that_do_not_come_are_gathered_once() -> None:
    same = unscheduled("0/2 nodes are available")
    found = look(
        job("Created"),
        pod(0, "Pending", conditions=(same,)),
        pod(1, "Pending", conditions=(same,)),
        nodes=3,
        hint="FailedCreatePod: why",
    )
    assert found.message == "0/2 nodes are available; FailedCreatePod: why"


def test_a_hint_is_not_told_once_all_pods_are_there() -> None:
    assert look(job("Created"), pod(0, "Pending"), nodes=1, hint="old").message == ""


@pytest.mark.parametrize(
    ("found", "pods", "dead", "remaining"),
    [
        (RUNNING, (pod(0), pod(1)), (), 3),
        (job("Running", deleting=True), (pod(0),), (), 1),
        (job("Running", deleting=True), (pod(0),), ("p0",), 0),
        (None, (pod(0),), (), 1),
        (None, (), (), 0),
    ],
    ids=["job and pods", "job on its way out", "a dead node's pod", "pods without a job", "nothing"],
)
def test_what_remains_could_still_write(
    found: Any, pods: tuple[Any, ...], dead: tuple[str, ...], remaining: int
) -> None:
    assert look(found, *pods, dead_pods=frozenset(dead)).remaining == remaining


def test_where_hyperpod_owns_the_recovery_a_failed_pod_does_not_end_the_attempt() -> None:
    failed = pod(1, "Failed", state=terminated(1))
    assert look(RUNNING, pod(0), failed, recovery="hyperpod").phase is Phase.STARTING


def test_a_pod_on_its_way_out_does_not_run() -> None:
    assert look(RUNNING, pod(0), pod(1, deleting=True)).phase is not Phase.RUNNING


def test_a_job_that_the_operator_has_not_seen_has_no_conditions() -> None:
    assert not has_conditions({"metadata": {}})
    assert has_conditions(RUNNING)
    assert json.dumps(look(RUNNING, pod(0), pod(1)).to_dict())
