"""The worker pod's parts: container, environment, resources, volumes, where it may run. Pure; used by `manifest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import steps
from steps.job.job import Job
from steps.pytorchjob.spec import JobSpec
from steps.settings.cluster import Cluster, Volume
from steps.settings.instances import Instance, find_instance

BOOTSTRAP = Path(steps.__file__).parent / "job" / "agent" / "bootstrap.py"
"""Its text is the container's command."""
CONTAINER = "pytorch"
"""The operator looks for exactly this name."""
RENDEZVOUS_PORT = 23456
NEURON, EFA = "aws.amazon.com/neuron", "vpc.amazonaws.com/efa"
TOKEN_KEY = "HF_TOKEN"
NODE_LOST_S = 60
"""A dead node's pods are given up after this, instead of Kubernetes' five minutes."""
BEYOND_GRACE_S = 30
"""Between our own SIGKILL and the kubelet's: time to write the last words."""
CPU_SHARE, MEMORY_SHARE = 15 / 16, 0.9
"""Of a whole node, for the worker: a job that asks for more than is allocatable is never admitted, in silence."""
HEALTH, DEEP_HEALTH = "sagemaker.amazonaws.com/node-health-status", "sagemaker.amazonaws.com/deep-health-check-status"
AVOIDED, CHECKED = 100, 10
"""Weights of two preferences: a node on which attempts failed counts for more than a missing deep health check."""
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
QUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")


@dataclass(frozen=True, slots=True)
class Shunned:
    """Nodes that an attempt is to stay away from, by name."""

    avoided: Sequence[str] = ()
    """Where nothing else has room, the job runs on them."""
    excluded: Sequence[str] = ()


NOWHERE = Shunned()


def template(
    spec: JobSpec, job: Job, attempt: int, *, name: str, labels: Mapping[str, str], shunned: Shunned
) -> dict[str, Any]:
    """The pod template of `name`."""
    cluster = spec.cluster
    metadata: dict[str, Any] = {"labels": {key: value for key, value in labels.items() if key not in QUEUE_LABELS}}
    annotations = {**_topology(cluster), **cluster.annotations}
    if annotations:
        metadata["annotations"] = annotations
    body: dict[str, Any] = {
        "terminationGracePeriodSeconds": int(spec.grace_s) + BEYOND_GRACE_S,
        "activeDeadlineSeconds": int(spec.total_s),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": [*_tolerations(cluster), *cluster.tolerations],
        "containers": [_container(spec, job, attempt, name)],
        "volumes": [*_own_volumes(cluster), *(_volume(item) for item in cluster.volumes)],
    }
    selector = _node_selector(cluster)
    affinity = _affinity(cluster, shunned)
    body |= {"nodeSelector": selector} if selector else {}
    body |= {"affinity": affinity} if affinity else {}
    body |= {"serviceAccountName": cluster.service_account} if cluster.service_account else {}
    body["securityContext"] = security(cluster)
    if cluster.image_pull_secrets:
        body["imagePullSecrets"] = [{"name": secret} for secret in cluster.image_pull_secrets]
    return {"metadata": metadata, "spec": body}


def security(cluster: Cluster) -> dict[str, Any]:
    """Who the processes are; with `container_security` what PodSecurity `restricted` asks for, unless the image decides the user.

    No fsGroup: FSx for Lustre's driver does not apply it to a shared claim.
    """
    user = cluster.run_as_user
    who = {"runAsUser": user, "runAsGroup": user, "runAsNonRoot": True} if user else {}
    return {**who, "seccompProfile": {"type": "RuntimeDefault"}}


def container_security(cluster: Cluster) -> dict[str, Any]:
    """Nobody gains rights. An image's root keeps its capabilities: without them it cannot write another user's files."""
    dropped = {"capabilities": {"drop": ["ALL"]}} if cluster.run_as_user else {}
    return {"allowPrivilegeEscalation": False, **dropped}


def _container(spec: JobSpec, job: Job, attempt: int, name: str) -> dict[str, Any]:
    cluster = spec.cluster
    bootstrap = BOOTSTRAP.read_text(encoding="utf-8")
    return {
        "name": CONTAINER,
        "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy,
        "command": ["python", "-u", "-c", bootstrap],
        "args": [
            spec.code.path,
            spec.code.sha256,
            "steps.job.agent.pod_main",
            *_arguments(spec, job, attempt),
        ],
        "env": _environment(spec, job, name),
        "resources": _resources(cluster),
        "securityContext": container_security(cluster),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "shared", "mountPath": cluster.mount_path},
            *(
                {"name": item.name, "mountPath": item.mount_path, "readOnly": item.read_only}
                for item in cluster.volumes
            ),
        ],
    }


def _arguments(spec: JobSpec, job: Job, attempt: int) -> list[str]:
    """Arguments of `pod_main`: all that it needs except its own rank, which the pod's label tells."""
    given: dict[str, object] = {
        "directory": job.directory.path,
        "module": job.module,
        "attempt": attempt,
        "nodes": job.nodes,
        "processes": job.processes,
        "threads": job.threads_per_process,
        "grace-s": f"{spec.grace_s:g}",
        "lease-s": f"{spec.cluster.lease_s:g}",
        "name-wait-s": f"{spec.cluster.name_wait_s:g}",
        "recovery": spec.cluster.recovery,
    }
    if job.wrapper:
        given["wrapper"] = job.wrapper
    return [f"--{key}={value}" for key, value in given.items()]


def _environment(spec: JobSpec, job: Job, name: str) -> list[dict[str, Any]]:
    cluster = spec.cluster
    fields = {
        # The operator gives a worker-only job no rank of any kind.
        "NODE_RANK": "metadata.labels['training.kubeflow.org/replica-index']",
        "POD_NAME": "metadata.name",
        "POD_UID": "metadata.uid",
        "NODE_NAME": "spec.nodeName",
    }
    plain = {"MASTER_ADDR": f"{name}-worker-0", "MASTER_PORT": str(RENDEZVOUS_PORT), "HOME": "/tmp"}
    plain |= {**job.environment, **cluster.environment}
    found: list[dict[str, Any]] = [
        {"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in fields.items()
    ]
    found += [{"name": key, "value": value} for key, value in plain.items()]
    if cluster.token_secret:
        reference = {"name": cluster.token_secret, "key": TOKEN_KEY}
        found.append({"name": TOKEN_KEY, "valueFrom": {"secretKeyRef": reference}})
    return found


def _resources(cluster: Cluster) -> dict[str, Any]:
    """Devices and memory: what is asked for is what is allowed; of processors more may be used when they are idle."""
    instance = find_instance(cluster.instance_type)
    cpu = cluster.cpu or (int(instance.vcpus * CPU_SHARE) if instance else 0)
    memory_gib = cluster.memory_gib or (int(instance.memory_gib * MEMORY_SHARE) if instance else 0)
    limits: dict[str, Any] = {"memory": f"{round(memory_gib * 1024)}Mi"} if memory_gib else {}
    limits |= devices_of(instance)
    requests = {"cpu": f"{round(cpu * 1000)}m", **limits} if cpu else dict(limits)
    return {"requests": requests, "limits": limits}


def devices_of(instance: Instance | None) -> dict[str, str]:
    """All Neuron devices and EFA adapters of a node."""
    if instance is None:
        return {}
    return {NEURON: str(instance.devices), **({EFA: str(instance.adapters)} if instance.adapters else {})}


def _own_volumes(cluster: Cluster) -> list[dict[str, Any]]:
    memory = {"medium": "Memory", "sizeLimit": f"{round(cluster.shared_memory_gib * 1024)}Mi"}
    return [
        {"name": "shm", "emptyDir": memory},
        {"name": "shared", "persistentVolumeClaim": {"claimName": cluster.claim}},
    ]


def _volume(item: Volume) -> dict[str, Any]:
    if item.claim:
        return {"name": item.name, "persistentVolumeClaim": {"claimName": item.claim}}
    if item.host_path:
        return {"name": item.name, "hostPath": {"path": item.host_path}}
    if item.config_map:
        return {"name": item.name, "configMap": {"name": item.config_map}}
    return {"name": item.name, "secret": {"secretName": item.secret}}


def _tolerations(cluster: Cluster) -> list[dict[str, Any]]:
    lost = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOST_S}
    found: list[dict[str, Any]] = [{"key": f"node.kubernetes.io/{key}", **lost} for key in ("not-ready", "unreachable")]
    if cluster.instance_type:
        found.append({"key": NEURON, "operator": "Exists", "effect": "NoSchedule"})
    return found


def _node_selector(cluster: Cluster) -> dict[str, str]:
    instance = find_instance(cluster.instance_type)
    if instance is None:
        return dict(cluster.node_selector)
    # Only HyperPod's own nodes carry the `ml.` in front.
    label = instance.label if cluster.require_healthy_nodes else instance.name
    return {INSTANCE_TYPE: label, **cluster.node_selector}


def _affinity(cluster: Cluster, shunned: Shunned) -> dict[str, Any]:
    """Nodes to avoid are a preference, one for each; those that are excluded a requirement (of one name each, by the API)."""
    found: dict[str, Any] = {}
    preferences: list[dict[str, Any]] = [
        _preference(AVOIDED, "matchFields", "metadata.name", "NotIn", node) for node in shunned.avoided
    ]
    term: dict[str, Any] = {}
    if shunned.excluded:
        names = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in shunned.excluded]
        term["matchFields"] = names
    if cluster.require_healthy_nodes:
        term["matchExpressions"] = [{"key": HEALTH, "operator": "In", "values": ["Schedulable"]}]
        preferences.append(_preference(CHECKED, "matchExpressions", DEEP_HEALTH, "In", "Passed"))
    if term:
        found["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [term]}
    if preferences:
        found["preferredDuringSchedulingIgnoredDuringExecution"] = preferences
    return {"nodeAffinity": found} if found else {}


def _preference(weight: int, kind: str, key: str, operator: str, value: str) -> dict[str, Any]:
    return {"weight": weight, "preference": {kind: [{"key": key, "operator": operator, "values": [value]}]}}


def _topology(cluster: Cluster) -> dict[str, str]:
    if not cluster.topology:
        return {}
    return {f"kueue.x-k8s.io/podset-{cluster.topology}-topology": cluster.topology_level}
