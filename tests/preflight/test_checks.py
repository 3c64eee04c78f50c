"""Operator, claims, names, images, dry runs: each fault is one finding with the words that help."""

from __future__ import annotations

from typing import Any

import pytest

from steps.preflight.question import Answer
from tests.preflight import preflight_answers as good
from tests.preflight.preflight_answers import (
    FORBIDDEN,
    MISSING,
    QUEUED,
    SILENT,
    Case,
    expect,
    items,
    judge,
    node,
    not_ok,
)


@pytest.mark.parametrize(
    "cluster",
    [
        {},
        QUEUED,
        {"token_secret": "hf"},
        {"steps": {"enabled": False}},
        {"instance_type": "", "require_healthy_nodes": False},
    ],
    ids=["plain", "queue", "token", "steps here", "no devices"],
)
def test_a_cluster_in_order_has_no_finding_to_act_on(cluster: dict[str, Any]) -> None:
    spoiled = {"job": Answer(201, {})} if not cluster.get("queue") else {}
    assert not_ok(judge(good.target(**cluster), spoiled)) == []


OPERATOR: dict[str, Case] = {
    "no CRD": ({}, {"group": MISSING}, "error", "does not know PyTorchJob", "Training Operator 1.7.0"),
    "another job kind only": (
        *({}, {"group": Answer(200, {"resources": [{"name": "mpijobs"}]})}),
        *("error", "does not know PyTorchJob", "Helm chart"),
    ),
    "v1 not served": ({}, {"crd": Answer(200, good.crd(served=False))}, "error", "does not serve v1", "1.7.0"),
    "group unread": ({}, {"group": SILENT}, "warning", "whether PyTorchJob is known is not checked", "try again"),
    "too old by its CRD": (
        *({}, {"crd": Answer(200, good.crd("backoffLimit")), "deployments": FORBIDDEN}),
        *("error", "older than 1.7.0", "1.7.0"),
    ),
    "too old by its tag": (
        *({}, {"deployments": items(good.operator("v1.6.0"))}),
        *("error", "Training Operator is 1.6.0", "1.7.0"),
    ),
    "does not run": (
        *({}, {"deployments": items(good.operator(available=0))}),
        *("error", "kubeflow/training-operator has no available replica", "kubectl describe"),
    ),
    "not found": (
        {},
        {"deployments": items()},
        "warning",
        "no deployment of it is found",
        "kubectl get deployments -A",
    ),
    "scheme off": (
        *({}, {"deployments": items(good.operator(arguments=("--enable-scheme=mpijob",)))}),
        *("error", "without --enable-scheme=pytorchjob", "arguments"),
    ),
    "CRD unreadable": (
        *({}, {"crd": FORBIDDEN, "deployments": FORBIDDEN}),
        *("warning", "may not get customresourcedefinitions", 'apiGroups: ["apiextensions.k8s.io"]'),
    ),
}


@pytest.mark.parametrize("case", OPERATOR.values(), ids=OPERATOR)
def test_operator(case: Case) -> None:
    expect(case, "operator")


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ({}, "Training Operator 1.7.0; below 1.8 nothing refuses a wrong job"),
        ({"deployments": items(good.operator("v1.9.2"))}, "Training Operator 1.9.2"),
        ({"deployments": FORBIDDEN}, "Training Operator 1.7.0 or newer, by its CRD; below 1.8"),
        (
            {"deployments": FORBIDDEN, "crd": Answer(200, good.crd("suspend", "managedBy"))},
            "1.9.0 or newer, by its CRD",
        ),
        ({"deployments": items(good.operator("latest"))}, "Training Operator 1.7.0 or newer, by its CRD"),
        ({"crd": FORBIDDEN, "deployments": items(good.operator("v1-5170a36"))}, "Training Operator 1.8.1"),
        ({"deployments": items(good.operator(arguments=("--enable-scheme=pytorchjob",)))}, "Training Operator 1.7.0"),
    ],
    ids=[
        "commit tag",
        "version tag",
        "by its CRD",
        "managedBy is 1.9",
        "no version",
        "by its image alone",
        "scheme on",
    ],
)
def test_the_operators_version_is_told_as_far_as_it_is_known(spoiled: dict[str, Answer], words: str) -> None:
    (found,) = [item for item in judge(good.target(), spoiled) if item.check == "operator"]
    assert found.severity == "ok"
    assert words in found.message


def claim(**changed: Any) -> dict[str, Answer]:
    meta = changed.pop("metadata", {})
    return {"claim fsx-claim": Answer(200, {"metadata": meta, "status": {**good.CLAIM["status"], **changed}})}


CLAIMS: dict[str, Case] = {
    "missing": ({}, {"claim fsx-claim": MISSING}, "error", "there is no claim fsx-claim", "fsx-static.yaml"),
    "pending": ({}, claim(phase="Pending"), "error", "fsx-claim is Pending, not Bound", "kubectl describe"),
    "one node only": ({}, claim(accessModes=["ReadWriteOnce"]), "error", "need ReadWriteMany", "FSx"),
    "deleted": ({}, claim(metadata={"deletionTimestamp": "now"}), "error", "is being deleted", "kubectl describe"),
    "may not get": (
        *({}, {"claim fsx-claim": FORBIDDEN}),
        *("warning", "may not get persistentvolumeclaims", "verbs: [get]"),
    ),
    "one more volume": (
        *({"volumes": [{"name": "data", "mount_path": "/data", "claim": "data"}]}, {"claim data": MISSING}),
        *("error", "there is no claim data", "cluster.volumes (data)"),
    ),
}


@pytest.mark.parametrize("case", CLAIMS.values(), ids=CLAIMS)
def test_claims(case: Case) -> None:
    expect(case, "claim")


TOKEN = {"token_secret": "hf"}
NAMED: dict[str, Case] = {
    "no secret": (TOKEN, {"named secret hf": MISSING}, "error", "no secret hf", "kubectl create secret generic hf -n "),
    "no key": (
        *(TOKEN, {"named secret hf": Answer(200, {"data": {"token": "…"}})}),
        *("error", "secret hf (cluster.token_secret) has no key HF_TOKEN", "kubectl patch secret hf -n "),
    ),
    "may not get": (TOKEN, {"named secret hf": FORBIDDEN}, "note", "not known", "kubectl get secret hf -n"),
    "no answer": (TOKEN, {"named secret hf": SILENT}, "warning", "ReadTimeoutError", "kubectl get secret hf -n"),
    "no account": (
        *({"service_account": "worker"}, {"named serviceaccount worker": MISSING}),
        *("error", "no serviceaccount worker", "kubectl create serviceaccount worker"),
    ),
    "no config map": (
        *({"volumes": [{"name": "x", "mount_path": "/x", "config_map": "cm"}]}, {"named configmap cm": MISSING}),
        *("error", "no configmap cm", "cluster.volumes (x)"),
    ),
    "no pull secret": (
        *({"image_pull_secrets": ["ecr"]}, {"named secret ecr": MISSING}),
        *("error", "no secret ecr", "cluster.image_pull_secrets"),
    ),
}


@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED)
def test_things_that_the_pods_name(case: Case) -> None:
    expect(case, "names")


def test_the_account_that_asks_is_there_for_sure() -> None:
    spoiled = {"named serviceaccount hyperpod-lora": FORBIDDEN}
    assert not_ok(judge(good.target(), spoiled)) == []


IMAGES: dict[str, Case] = {
    "no name": ({"image": "My Image"}, {}, "error", "'My Image' is no name of an image", "registry/name:tag"),
    "latest": ({"image": "r.io/lora:latest"}, {}, "warning", "another image between two attempts", "tag of its own"),
    "no tag": ({"image": "r.io/lora"}, {}, "warning", "another image between two attempts", "tag of its own"),
    "the example's": (
        {"image": "111122223333.dkr.ecr.x.amazonaws.com/a:1"},
        {},
        "error",
        "the example's",
        "push your own",
    ),
    "of the steps": ({"steps": {"image": "a:latest"}}, {}, "warning", "a:latest", "cluster.steps.image"),
}


@pytest.mark.parametrize("case", IMAGES.values(), ids=IMAGES)
def test_images(case: Case) -> None:
    expect(case, "image")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (f"r.io:5000/a/b@sha256:{'0' * 64}", "pinned by digest; that nodes may pull it is not tested"),
        ("r.io/a/b:1.0", "that nodes may pull it is not tested"),
        ("here:1", "a node has it already"),
    ],
)
def test_an_image_is_told_as_far_as_it_is_known(image: str, words: str) -> None:
    with_image = node("node-1")
    with_image["status"]["images"] = [{"names": ["here:1"]}]
    spoiled = {"nodes": items(with_image, node("node-2"))}
    (found,) = [item for item in judge(good.target(image=image), spoiled) if item.check == "image"]
    assert (found.severity, words in found.message) == ("ok", True)


def refused(status: int, message: str, **details: str) -> Answer:
    return Answer(status, {"message": message, "details": details})


WEBHOOK = 'Internal error occurred: failed calling webhook "mpytorchjob.kb.io": no endpoints available'
JOBS: dict[str, Case] = {
    "no namespace": (
        *({}, {"job": refused(404, "namespaces not found", kind="namespaces")}),
        *("error", "there is no namespace hyperpod-ns-research", "cluster.namespace"),
    ),
    "webhook away": ({}, {"job": refused(500, WEBHOOK)}, "error", "does not answer", "Kueue"),
    "schema": (
        *({}, {"job": refused(422, 'PyTorchJob "x" is invalid: spec.nprocPerNode')}),
        *("error", "the API server refuses the job: PyTorchJob", "correct what it names"),
    ),
}


@pytest.mark.parametrize("case", JOBS.values(), ids=JOBS)
def test_dry_run_of_the_job(case: Case) -> None:
    expect(case, "job")


PODS: dict[str, Case] = {
    "pod security": (
        *({}, {"pod": refused(403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"')}),
        *("error", "refuses a worker's pod", "pod security level"),
    ),
    "quota, and quotas are unreadable": (
        *({}, {"pod": refused(403, "exceeded quota: team"), "quotas": SILENT}),
        *("warning", "no room now: exceeded quota: team", "wait"),
    ),
}


@pytest.mark.parametrize("case", PODS.values(), ids=PODS)
def test_dry_run_of_a_pod(case: Case) -> None:
    expect(case, "pod")


@pytest.mark.parametrize(
    "spoiled",
    [
        {"job": FORBIDDEN, "pod": FORBIDDEN},
        {"job": SILENT, "pod": SILENT},
        {"job": refused(409, "AlreadyExists")},
        {"job": refused(404, "not found", kind="pytorchjobs")},
    ],
    ids=["forbidden", "silent", "there is one", "not this kind"],
)
def test_a_dry_run_that_tells_nothing_is_no_finding(spoiled: dict[str, Answer]) -> None:
    assert not_ok(judge(good.target(), spoiled)) == []
