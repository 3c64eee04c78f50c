"""The job itself: its images' names, our own rules for the manifest, and what the API server says to a dry run of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from steps.preflight.finding import Finding, error, ok, warning
from steps.preflight.question import Answer, Question
from steps.pytorchjob.manifest import LONGEST_NAME
from steps.pytorchjob.pod_template import CONTAINER
from steps.settings.cluster import Cluster

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
IMAGE = re.compile(
    rf"(?P<name>(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?{PART}(?:/{PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>[a-z0-9]+:[0-9a-f]{32,}))?",
    re.ASCII,
)
EXAMPLE_ACCOUNT = "111122223333"
DRY = (("dryRun", "All"), ("fieldValidation", "Strict"))


def judge_images(cluster: Cluster, nodes: Answer) -> list[Finding]:
    """The images' names, and whether nodes have them already; that they can be pulled is not tested."""
    present = {name for node in nodes.items for item in _images(node) for name in item.get("names") or ()}
    images = {"cluster.image": cluster.image}
    if cluster.steps.enabled and cluster.steps.image not in ("", cluster.image):
        images["cluster.steps.image"] = cluster.steps.image
    return [_image(setting, image, present) for setting, image in images.items()]


def _images(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((node.get("status") or {}).get("images") or ())


def _image(setting: str, image: str, present: set[str]) -> Finding:
    found = IMAGE.fullmatch(image)
    if not found:
        return error("image", f"{image!r} is no name of an image", f"correct {setting}: registry/name:tag")
    if EXAMPLE_ACCOUNT in image:
        return error("image", f"{image} is the example's, not yours", f"push your own and set {setting}")
    pull = "a node has it already" if image in present else "that nodes may pull it is not tested"
    if found["digest"]:
        return ok("image", f"{image}: pinned by digest; {pull}")
    if found["tag"] in (None, "latest"):
        what = f"{image} may become another image between two attempts; {pull}"
        return warning("image", what, f"give {setting} a tag of its own, or a digest")
    return ok("image", f"{image}; {pull}")


def judge_manifest(manifest: Mapping[str, Any]) -> list[Finding]:
    """The rules that operator 1.7 would break silently: it accepts anything and then never starts it."""
    found = [
        error("job", f"the manifest {what}", "correct the setting that it comes from") for what in _wrong(manifest)
    ]
    return found or [ok("job", f"the manifest keeps the operator's rules; name {manifest['metadata']['name']}")]


def _wrong(manifest: Mapping[str, Any]) -> Iterator[str]:
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    if not DNS_LABEL.fullmatch(name) or len(name) > LONGEST_NAME:
        yield f"has a name that is not DNS-1035 of at most {LONGEST_NAME} characters: {name}"
    if not str(spec["nprocPerNode"]).isdigit():
        yield f"has nprocPerNode {spec['nprocPerNode']!r}, not a number"
    for kind, replica in spec["pytorchReplicaSpecs"].items():
        if kind not in ("Master", "Worker"):
            yield f"has replicas of the unknown kind {kind}"
        containers = replica["template"]["spec"]["containers"]
        if not any(item["name"] == CONTAINER and item.get("image") for item in containers):
            yield f"has no container {CONTAINER} with an image among its {kind}s"
        for container in containers:
            yield from _devices(container)


def _devices(container: Mapping[str, Any]) -> Iterator[str]:
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name in sorted({key for key in (*requests, *limits) if "/" in key}):
        if requests.get(name) != limits.get(name):
            yield f"asks for {requests.get(name)} {name} but limits it to {limits.get(name)}: devices must be equal"


def job_question(manifest: Mapping[str, Any]) -> Question:
    """Create it, but not really: the CRD's schema, quotas on jobs and every webhook get to see it."""
    path = f"/apis/kubeflow.org/v1/namespaces/{manifest['metadata']['namespace']}/pytorchjobs"
    return Question(path, "create", "pytorchjobs", "kubeflow.org", DRY, manifest)


def pod_question(manifest: Mapping[str, Any]) -> Question:
    """Create worker 0's pod, but not really: limit ranges, pod security and quotas get to see it."""
    template, meta = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"], manifest["metadata"]
    metadata = {**template["metadata"], "name": f"{meta['name']}-worker-0", "namespace": meta["namespace"]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {**template["spec"], "restartPolicy": "Never"},
    }
    return Question(f"/api/v1/namespaces/{meta['namespace']}/pods", "create", "pods", query=DRY[:1], body=pod)


def judge_job(cluster: Cluster, answer: Answer) -> list[Finding]:
    """What the API server said to the job."""
    if answer.is_ok:
        return [
            ok("job", "the API server would accept it (dry run)"),
            *([_queued(cluster, answer)] if cluster.queue else []),
        ]
    if may_not_create(answer) or answer.status in (0, HTTPStatus.CONFLICT):
        return []  # permissions and operator say it
    if answer.is_missing:
        if (answer.body.get("details") or {}).get("kind") == "namespaces":
            fix = f"correct cluster.namespace or cluster.context, or: kubectl create namespace {cluster.namespace}"
            return [error("job", f"there is no namespace {cluster.namespace}", fix)]
        return []
    if "failed calling webhook" in answer.message:
        fix = "whoever runs that webhook (Kueue, say) must bring it back: kubectl get pods -A | grep -i kueue"
        return [error("job", f"a webhook that must see every job does not answer: {answer.message}", fix)]
    return [error("job", f"the API server refuses the job: {answer.message}", "correct what it names")]


def _queued(cluster: Cluster, answer: Answer) -> Finding:
    if ((answer.body.get("spec") or {}).get("runPolicy") or {}).get("suspend"):
        return ok("queue", f"Kueue takes the job into {cluster.queue} (dry run)")
    what = "Kueue would not hold the job: it is created unsuspended, and starts past every quota"
    return error(
        "queue",
        what,
        "let Kueue manage kubeflow.org/pytorchjob (its `integrations.frameworks`), or empty cluster.queue",
    )


def judge_pod(answer: Answer, *, is_quota_known: bool) -> list[Finding]:
    """What the API server said to a worker's pod; where we may not ask, `admission` judges by reading."""
    if answer.is_ok:
        return [ok("pod", "the API server would accept a worker's pod (dry run)")]
    if may_not_create(answer) or answer.is_missing or answer.status in (0, HTTPStatus.CONFLICT):
        return []
    if "exceeded quota" in answer.message:
        fix = "wait until others have ended, or have the ResourceQuota raised"
        return [] if is_quota_known else [warning("pod", f"a worker's pod has no room now: {answer.message}", fix)]
    fix = "correct what it names: the namespace's LimitRange, pod security level, or the service account"
    return [error("pod", f"the API server refuses a worker's pod: {answer.message}", fix)]


def may_not_create(answer: Answer) -> bool:
    """Refused for want of a permission, not for what the object is."""
    return answer.is_forbidden and "cannot create resource" in answer.message
