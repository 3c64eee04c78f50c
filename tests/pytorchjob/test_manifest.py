"""The manifest, whole: as it stands in the golden files, and against the operator's own schema with no unknown field allowed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from steps.flow import launchers
from steps.job.job import Job
from steps.protocol.rundir import TrainDir
from steps.pytorchjob import pod_template
from steps.pytorchjob.manifest import LONGEST_NAME, build, label_value, name_of
from steps.pytorchjob.pod_template import NOWHERE, Shunned
from steps.pytorchjob.spec import Code
from steps.settings.config import Settings, parse_settings

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
CONFIG = HERE.parents[1] / "config" / "hyperpod.yaml"
SHUNNED = Shunned(("node-7",), ("node-9",))
BOOTSTRAP = "<steps/job/agent/bootstrap.py>"
CPU = {
    "storage": {"root": "/shared/runs", "cache": "/shared/cache"},
    "launcher": {"kind": "pytorchjob"},
    "cluster": {
        "namespace": "kubeflow",
        "image": "lora:1",
        "nodes": 2,
        "cpu": 2,
        "memory_gib": 4,
        "mount_path": "/shared",
    },
}
EVERYTHING = {
    **CPU,
    "cluster": {
        **CPU["cluster"],  # type: ignore[dict-item]
        "instance_type": "trn1.32xlarge",
        "min_nodes": 1,
        "queue": "research",
        "priority": "high",
        "topology": "required",
        "token_secret": "hub",
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
        "node_selector": {"zone": "c"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "environment": {"NCCL_DEBUG": "INFO"},
        "service_account": "worker",
        "image_pull_secrets": ["pull"],
        "run_as_user": 0,
        "require_healthy_nodes": False,
        "volumes": [
            {"name": "one", "mount_path": "/one", "claim": "a-claim"},
            {"name": "two", "mount_path": "/two", "host_path": "/opt/two", "read_only": False},
            {"name": "three", "mount_path": "/three", "config_map": "a-map"},
            {"name": "four", "mount_path": "/four", "secret": "a-secret"},
        ],
    },
}


def settings_of(raw: dict[str, Any]) -> Settings:
    return parse_settings(raw)


def job_of(settings: Settings, **changes: Any) -> Job:
    given: dict[str, Any] = {
        "module": "steps.train.worker",
        "spec": {},
        "identity": "1f2e3d",
        "total_steps": 400,
        "directory": TrainDir(Path(settings.storage.root) / "LoraFlow/17/train-1f2e3d"),
        "processes": 32,
        "nodes": settings.cluster.nodes,
        "threads_per_process": 4,
        "environment": {"TOKENIZERS_PARALLELISM": "false"},
        "label": "llama3-alpaca",
    }
    return Job(**{**given, **changes})


def manifest(
    settings: Settings, *, shunned: Shunned = NOWHERE, owner: dict[str, Any] | None = None, **changes: Any
) -> Any:
    code = Code(f"{settings.storage.root}/LoraFlow/17/code.tgz", "ab" * 32)
    spec = launchers.spec_of(settings, run="LoraFlow/17", step="train", code=code, owner=owner)
    return build(spec, job_of(settings, **changes), 1, shunned=shunned)


def container(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = template(made)["spec"]["containers"][0]
    return found


def template(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return found


@pytest.mark.parametrize("name", ["hyperpod", "cpu", "everything"])
def test_the_manifest_is_the_golden_one(name: str) -> None:
    """UPDATE_GOLDEN=1 writes it anew: then read the difference."""
    raw = {"hyperpod": yaml.safe_load(CONFIG.read_text()), "cpu": CPU, "everything": EVERYTHING}[name]
    made = manifest(settings_of(raw), shunned=SHUNNED if name == "everything" else NOWHERE)
    container(made)["command"][-1] = BOOTSTRAP
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(yaml.safe_dump(made, sort_keys=False, width=120))
    assert made == yaml.safe_load(path.read_text())


def forbid_unknown(schema: Any) -> Any:
    """As the API server does with `fieldValidation: Strict`."""
    if isinstance(schema, list):
        return [forbid_unknown(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: forbid_unknown(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture(scope="module")
def operator_schema() -> jsonschema.Draft202012Validator:
    raw = json.loads((HERE / "pytorchjob-1.7.0.json").read_text())["x-schema"]
    raw["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return jsonschema.Draft202012Validator(forbid_unknown(raw))


@pytest.mark.parametrize("name", ["hyperpod", "cpu", "everything"])
def test_the_operators_own_schema_knows_every_field(
    name: str, operator_schema: jsonschema.Draft202012Validator
) -> None:
    raw = {"hyperpod": yaml.safe_load(CONFIG.read_text()), "cpu": CPU, "everything": EVERYTHING}[name]
    made = manifest(
        settings_of(raw), shunned=SHUNNED, owner={"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u"}
    )
    operator_schema.validate(made)


def test_the_schema_test_can_fail(operator_schema: jsonschema.Draft202012Validator) -> None:
    made = manifest(settings_of(CPU))
    container(made)["comand"] = []
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        operator_schema.validate(made)


def test_the_owner_is_named_so_that_the_job_goes_with_it() -> None:
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u"}
    assert manifest(settings_of(CPU), owner=owner)["metadata"]["ownerReferences"] == [owner]


def test_a_wrapper_of_the_worker_is_passed_on() -> None:
    assert "--wrapper=nsys" in str(container(manifest(settings_of(CPU), wrapper="nsys")))
    assert "--wrapper" not in str(container(manifest(settings_of(CPU))))


def test_hyperpods_auto_resume_is_told_what_it_may_do() -> None:
    made = manifest(settings_of({**CPU, "cluster": {**CPU["cluster"], "recovery": "hyperpod", "hyperpod_retries": 3}}))  # type: ignore[dict-item]
    assert made["spec"]["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "OnFailure"
    assert made["metadata"]["annotations"]["sagemaker.amazonaws.com/enable-job-auto-resume"] == "true"
    assert made["metadata"]["annotations"]["sagemaker.amazonaws.com/job-max-retry-count"] == "3"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("llama3-alpaca", r"llama3-alpaca-train-[0-9a-f]{8}-a1"),
        ("Meta Llama/3.1_8B", r"meta-llama-3-1-8b-train-[0-9a-f]{8}-a1"),
        ("8b", r"lora-8b-train-[0-9a-f]{8}-a1"),
        ("", r"train-[0-9a-f]{8}-a1"),
        ("ä", r"train-[0-9a-f]{8}-a1"),
        ("x" * 300, r"x{38}-[0-9a-f]{8}-a1"),
    ],
)
def test_a_name_is_readable_and_short_enough_for_its_pods(label: str, expected: str) -> None:
    name = manifest(settings_of(CPU), label=label)["metadata"]["name"]
    assert re.fullmatch(expected, name)
    assert len(name) <= LONGEST_NAME
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


def test_attempts_and_trainings_have_names_of_their_own() -> None:
    settings = settings_of(CPU)
    spec = launchers.spec_of(settings, run="LoraFlow/17", step="train", code=Code("c", "d"))
    job, other = job_of(settings), job_of(settings, identity="other")
    names = {name_of(spec, job, 1), name_of(spec, job, 2), name_of(spec, other, 1)}
    assert len(names) == 3
    assert name_of(spec, job, 1) == name_of(spec, job_of(settings, nodes=1), 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("LoraFlow/17", "LoraFlow-17"), ("a b", "a-b"), ("_x_", "x"), ("y" * 80, "y" * 63), ("-" * 70 + "z", "z")],
)
def test_a_label_is_what_kubernetes_takes(text: str, expected: str) -> None:
    assert label_value(text) == expected


def test_no_secret_stands_in_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    made = manifest(settings_of(EVERYTHING))
    assert "hf_secret" not in json.dumps(made)
    token = next(item for item in container(made)["env"] if item["name"] == "HF_TOKEN")
    assert token == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}}


def test_without_anything_said_about_size_nothing_is_asked_for() -> None:
    made = manifest(settings_of({**CPU, "cluster": {**CPU["cluster"], "cpu": 0, "memory_gib": 0}}))  # type: ignore[dict-item]
    assert container(made)["resources"] == {"requests": {}, "limits": {}}


def test_an_instance_without_adapters_asks_for_devices_alone() -> None:
    raw = {**CPU, "cluster": {**CPU["cluster"], "instance_type": "trn1.2xlarge"}}  # type: ignore[dict-item]
    assert set(container(manifest(settings_of(raw)))["resources"]["limits"]) == {"memory", pod_template.NEURON}


def test_nodes_to_avoid_are_a_preference_that_yields_where_nothing_else_has_room() -> None:
    spec = template(manifest(settings_of(CPU), shunned=Shunned(("node-7", "node-8"))))["spec"]
    found = spec["affinity"]["nodeAffinity"]
    assert "metadata.name" not in str(found["requiredDuringSchedulingIgnoredDuringExecution"])
    shunned = [item for item in found["preferredDuringSchedulingIgnoredDuringExecution"] if item["weight"] == 100]
    fields = [item["preference"]["matchFields"] for item in shunned]
    assert fields == [
        [{"key": "metadata.name", "operator": "NotIn", "values": [node]}] for node in ("node-7", "node-8")
    ]


@pytest.mark.parametrize("is_managed", [True, False])
def test_nodes_that_are_excluded_are_a_requirement_beside_that_of_health(is_managed: bool) -> None:
    raw = {**CPU, "cluster": {**CPU["cluster"], "require_healthy_nodes": is_managed}}  # type: ignore[dict-item]
    made = manifest(settings_of(raw), shunned=Shunned(excluded=("node-7", "node-8")))
    (term,) = template(made)["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert [item["values"] for item in term["matchFields"]] == [["node-7"], ["node-8"]]  # the API takes one name each
    assert ("matchExpressions" in term) == is_managed


def test_the_shipped_worker_pod_passes_pod_security_restricted() -> None:
    """As the standard words it: https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    spec = template(manifest(settings_of(yaml.safe_load(CONFIG.read_text()))))["spec"]
    pod, inside = spec["securityContext"], spec["containers"][0]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] != 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inside == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_a_user_that_the_image_decides_keeps_its_capabilities() -> None:
    spec = template(manifest(settings_of(EVERYTHING)))["spec"]
    assert "runAsUser" not in spec["securityContext"]
    assert "capabilities" not in spec["containers"][0]["securityContext"]


def test_neither_label_nor_affinity_where_hyperpod_does_not_manage() -> None:
    raw = {**CPU, "cluster": {**CPU["cluster"], "require_healthy_nodes": False}}  # type: ignore[dict-item]
    assert "affinity" not in template(manifest(settings_of(raw)))["spec"]
