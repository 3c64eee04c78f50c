"""All questions to the API server, and all findings from its answers; `run` asks and judges with it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from steps.job.job import Job
from steps.preflight import access, admission, finding, manifest, nodes, operator, queue, quota, storage
from steps.preflight.cloud import LOCAL, Datastore
from steps.preflight.finding import Finding
from steps.preflight.quantity import asked_by, times
from steps.preflight.question import Answer, Question
from steps.protocol.rundir import TrainDir
from steps.pytorchjob.manifest import build
from steps.pytorchjob.spec import Code, JobSpec
from steps.settings.config import Settings
from steps.settings.instances import find_instance

AWAY = "api"
"""The check that fails when the API server does not answer at all."""
VERSION = Question("/version")
ME = Question(
    "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    "create",
    "selfsubjectreviews",
    body={"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
)


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be launched, and from where."""

    settings: Settings
    processes: int = 0
    """Processes in one worker pod; 0: one for each NeuronCore."""
    datastore: Datastore = LOCAL
    is_inside: bool = False
    """We are in a pod of the cluster."""


def sample(target: Target) -> dict[str, Any]:
    """The manifest of a job like the one to come: the same pods, another name."""
    settings, cluster = target.settings, target.settings.cluster
    instance = find_instance(cluster.instance_type)
    directory = TrainDir(Path(settings.storage.root) / "preflight")
    deadlines = settings.deadlines
    code = Code(f"{directory.path}/code", "0" * 64)
    spec = JobSpec(cluster, "preflight", "train", code, deadlines.grace_s, deadlines.total_s)
    processes = target.processes or (instance.cores if instance else 1)
    job = Job("steps.train.worker", {}, directory, "preflight", 1, processes, cluster.nodes, label="preflight")
    return build(spec, job, 0)


def questions(target: Target, made: Mapping[str, Any]) -> dict[str, Question]:
    """All that can be asked at once; `queue.questions` asks on from there."""
    cluster = target.settings.cluster
    space, launcher = cluster.namespace, access.account_of_steps(cluster)
    found = {"me": ME, "group": operator.GROUP, "crd": operator.CRD, "deployments": operator.DEPLOYMENTS}
    found |= {"nodes": nodes.NODES, "pods": nodes.PODS, "quotas": quota.question(space)}
    found |= {"job": manifest.job_question(made), "pod": manifest.pod_question(made), **admission.questions(space)}
    found |= {"kueue": queue.GROUP} if cluster.queue else {}
    for right in access.rights(cluster):
        found[f"own {right.key}"] = access.ask_self(right, space)
        if launcher and not target.is_inside:
            found[f"their {right.key}"] = access.ask_for(right, space, launcher)
    found |= {f"claim {name}": storage.claim_question(space, name) for name in storage.claims(cluster)}
    return found | {f"named {item.words}": storage.named_question(space, item) for item in storage.named(cluster)}


def judge(target: Target, made: Mapping[str, Any], known: Mapping[str, Answer]) -> list[Finding]:
    """All answers of the API server → all findings."""
    cluster = target.settings.cluster
    worker = made["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    me = _username(known["me"])
    total = times(cluster.nodes, asked_by(worker))
    named = {item: known[f"named {item.words}"] for item in storage.named(cluster)}
    found = [
        finding.ok("api", f"Kubernetes {known['version'].body.get('gitVersion')}, as {me or 'an unknown account'}")
    ]
    found += access.judge(cluster, me, _those(known, "own "), _those(known, "their "))
    found += operator.judge(known["group"], known["crd"], known["deployments"])
    found += nodes.judge(known["nodes"], known["pods"], worker, wanted=cluster.nodes, least=cluster.node_choices[-1])
    found += nodes.judge_steps(known["nodes"], _step_pod(target)) if cluster.steps.enabled else []
    found += nodes.judge_drivers(known["nodes"], worker) if target.settings.launcher.backend == "neuron" else []
    found += storage.judge_claims(cluster, _those(known, "claim "))
    found += storage.judge_named(cluster, named, account=me)
    found += queue.judge(cluster, known, total, worker)
    found += quota.judge(cluster, known["quotas"], worker)
    found += manifest.judge_images(cluster, known["nodes"])
    found += manifest.judge_manifest(made) + manifest.judge_job(cluster, known["job"])
    if manifest.may_not_create(known["pod"]):
        return found + admission.judge(
            cluster.namespace, known, made["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
        )
    return found + manifest.judge_pod(known["pod"], is_quota_known=known["quotas"].is_ok)


def unreachable(version: Answer) -> Finding:
    """The API server gave no answer to the first question, or none that helps."""
    if version.status == HTTPStatus.UNAUTHORIZED:
        fix = "log in again: aws sso login, or aws eks update-kubeconfig"
        return finding.error("login", f"the credential was refused: {version.message}", fix)
    fix = "look at the network (VPN, private endpoint), KUBECONFIG and cluster.context; nothing in the cluster was checked"
    return finding.error(AWAY, f"the Kubernetes API does not answer: {version.message}", fix)


def is_away(found: Sequence[Finding]) -> bool:
    """Nothing could be asked, which may pass."""
    return any(item.check == AWAY and item.severity == "error" for item in found)


def _those(known: Mapping[str, Answer], prefix: str) -> dict[str, Answer]:
    return {key.removeprefix(prefix): answer for key, answer in known.items() if key.startswith(prefix)}


def _username(me: Answer) -> str:
    return str(((me.body.get("status") or {}).get("userInfo") or {}).get("username", ""))


def _step_pod(target: Target) -> dict[str, Any]:
    """The largest of the flow's own pods, as `step_pods` asks for them."""
    cluster = target.settings.cluster
    steps = cluster.steps
    asked = {"cpu": f"{round(steps.cpu * 1000)}m", "memory": f"{round(steps.memory_gib * 1024)}Mi"}
    containers = [{"resources": {"requests": asked}}]
    return {"nodeSelector": steps.node_selector, "tolerations": cluster.tolerations, "containers": containers}
