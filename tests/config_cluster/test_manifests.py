"""The manifests that a platform engineer applies: whole, of one mind about names, and asking for no more than is used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.settings.config import parse_settings
from tests.config_cluster.manifests import (
    ACCOUNT,
    CLAIM,
    FILES,
    NAMESPACE,
    OF_ARGO_PODS,
    OF_METAFLOW_ARGO,
    OF_METAFLOW_RUN,
    OF_THE_CLUSTER_ROLE,
    OF_THE_ROLE,
    PEOPLE,
    PROJECT,
    allowed,
    objects,
    of_kind,
)

EACH = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
OF_NO_NAMESPACE = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "PersistentVolume",
    "StorageClass",
    "ResourceFlavor",
    "ClusterQueue",
    "WorkloadPriorityClass",
}


def test_the_folder_holds_what_an_installation_needs() -> None:
    assert {path.stem for path in FILES} == {
        "namespace",
        "rbac",
        "rbac-metaflow",
        "fsx-static",
        "fsx-dynamic",
        "fsx-folder",
        "queue-example",
    }


@EACH
def test_a_file_begins_with_what_it_is_its_command_and_what_to_edit(path: Path) -> None:
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header
    assert len(header[0].splitlines()[0]) > 40
    assert f"#   kubectl apply -f config/cluster/{path.name}\n" in header[0]
    assert "\n# Edit: " in header[0]


@EACH
def test_every_object_has_a_kind_a_name_our_label_and_the_one_namespace(path: Path) -> None:
    for item in objects(path):
        assert item["apiVersion"]
        assert item["metadata"]["labels"] == {"app.kubernetes.io/part-of": "hyperpod-lora"}
        expected = None if item["kind"] in OF_NO_NAMESPACE else NAMESPACE
        assert item["metadata"].get("namespace") == expected, item["metadata"]["name"]


@EACH
def test_no_file_holds_a_secret(path: Path) -> None:
    assert "Secret" not in [item["kind"] for item in objects(path)]
    assert not re.search(r"hf_[A-Za-z0-9]{8}|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", path.read_text())


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("Role", "hyperpod-lora", OF_THE_ROLE),
        ("ClusterRole", f"hyperpod-lora-preflight-{NAMESPACE}", OF_THE_CLUSTER_ROLE),
        ("Role", "hyperpod-lora-argo-pod", OF_ARGO_PODS),
        ("Role", "hyperpod-lora-metaflow-run", OF_METAFLOW_RUN),
        ("Role", "hyperpod-lora-metaflow-argo", OF_METAFLOW_ARGO),
    ],
    ids=["jobs", "preflight", "argo-pod", "metaflow-run", "metaflow-argo"],
)
def test_a_role_allows_exactly_these_verbs(kind: str, name: str, expected: dict[str, set[str]]) -> None:
    assert allowed(of_kind("Role", "ClusterRole")[kind, name]) == expected


def test_there_is_no_other_role() -> None:
    assert len(of_kind("Role", "ClusterRole")) == 5


def test_no_role_has_a_wildcard_reads_secrets_or_enters_pods() -> None:
    for (_, name), role in of_kind("Role", "ClusterRole").items():
        assert "*" not in json.dumps(role["rules"]), name
        assert not {"secrets", "pods/exec", "pods/attach", "serviceaccounts/token"} & set(allowed(role)), name
        assert not {"impersonate", "escalate", "bind"} & set().union(*allowed(role).values()), name


def test_nothing_of_ours_is_patched_or_updated() -> None:
    assert not {"patch", "update"} & set().union(*OF_THE_ROLE.values(), *OF_THE_CLUSTER_ROLE.values())


def subjects(binding: dict[str, Any]) -> list[dict[str, str]]:
    return binding["subjects"]


def test_pods_and_people_watch_over_jobs_but_only_people_launch_flows() -> None:
    found = of_kind("RoleBinding", "ClusterRoleBinding")
    assert {binding["roleRef"]["name"]: subjects(binding) for binding in found.values()} == {
        "hyperpod-lora": [ACCOUNT, PEOPLE],
        f"hyperpod-lora-preflight-{NAMESPACE}": [ACCOUNT, PEOPLE],
        "hyperpod-lora-argo-pod": [ACCOUNT],
        "hyperpod-lora-metaflow-run": [PEOPLE],
        "hyperpod-lora-metaflow-argo": [PEOPLE],
    }


@pytest.mark.parametrize("stem", ["rbac", "rbac-metaflow", "fsx-static", "fsx-dynamic", "namespace"])
def test_two_teams_share_no_object_and_no_group(stem: str) -> None:
    """Else removing one team's files takes the other's rights away, and people have rights in the other team's namespace."""
    path = PROJECT / "config" / "cluster" / f"{stem}.yaml"
    ours, theirs = (
        objects(path),
        [yaml.safe_load(json.dumps(item).replace(NAMESPACE, "theirs")) for item in objects(path)],
    )
    for mine, other in zip(ours, theirs, strict=True):
        keys = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in (mine, other)]
        assert keys[0] != keys[1]
        both = [json.dumps(subject) for item in (mine, other) for subject in item.get("subjects", ())]
        assert len(set(both)) == len(both)


def test_the_schedule_of_the_guide_is_applied_and_changed_with_the_shipped_rights() -> None:
    text = (PROJECT / "docs" / "argo.md").read_text()
    found, config = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert parse_settings(config).deployment.trigger.event == "data-arrived"
    assert found["spec"]["schedules"] == ["0 2 * * *"]
    assert "schedule" not in found["spec"]
    assert {"create", "get", "list", "patch"} <= OF_METAFLOW_ARGO["cronworkflows.argoproj.io"]
    assert "argo-workflows --name" in text


def test_every_binding_names_a_role_and_an_account_that_exist() -> None:
    roles = set(of_kind("Role", "ClusterRole"))
    assert ("ServiceAccount", ACCOUNT["name"]) in of_kind("ServiceAccount")
    for binding in of_kind("RoleBinding", "ClusterRoleBinding").values():
        reference = binding["roleRef"]
        assert (reference["kind"], reference["name"]) in roles


@pytest.mark.parametrize("stem", ["fsx-static", "fsx-dynamic"])
def test_a_file_system_is_shared_kept_and_claimed_by_the_same_name(stem: str) -> None:
    first, claim = objects(PROJECT / "config" / "cluster" / f"{stem}.yaml")
    assert claim["metadata"]["name"] == CLAIM
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert first.get("reclaimPolicy", first.get("spec", {}).get("persistentVolumeReclaimPolicy")) == "Retain"


def test_the_static_volume_and_its_claim_name_each_other() -> None:
    volume, claim = objects(PROJECT / "config" / "cluster" / "fsx-static.yaml")
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert volume["spec"]["claimRef"] == {"namespace": NAMESPACE, "name": CLAIM}
    assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"] == ""


def test_the_dynamic_claim_names_its_class() -> None:
    storage_class, claim = objects(PROJECT / "config" / "cluster" / "fsx-dynamic.yaml")
    assert claim["spec"]["storageClassName"] == storage_class["metadata"]["name"]


def test_the_folder_is_made_for_the_user_of_the_images_by_a_root_that_can_do_little_else() -> None:
    (job,) = objects(PROJECT / "config" / "cluster" / "fsx-folder.yaml")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["volumes"] == [{"name": "fsx", "persistentVolumeClaim": {"claimName": CLAIM}}]
    assert container["command"][:6] == ["install", "-d", "-o", "1000", "-g", "1000"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert pod["automountServiceAccountToken"] is False


def test_the_queue_leads_to_a_quota_of_everything_that_a_job_requests() -> None:
    found = of_kind("LocalQueue", "ClusterQueue", "ResourceFlavor")
    queue = found["LocalQueue", f"{NAMESPACE}-localqueue"]
    cluster_queue = found["ClusterQueue", queue["spec"]["clusterQueue"]]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert ("ResourceFlavor", flavor["name"]) in found
    assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    assert set(group["coveredResources"]) == {"cpu", "memory", "aws.amazon.com/neuron", "vpc.amazonaws.com/efa"}


def test_a_training_comes_before_an_experiment() -> None:
    values = {name: item["value"] for (_, name), item in of_kind("WorkloadPriorityClass").items()}
    assert values["training-priority"] > values["experiment-priority"]


@pytest.mark.parametrize("text", ["docs/install-on-hyperpod.md"])
def test_the_installation_guide_names_files_that_exist_and_every_manifest(text: str) -> None:
    named = set(
        re.findall(r"\b(?:config|containers|docs)/[\w./-]+\.(?:yaml|Dockerfile|txt|md)", (PROJECT / text).read_text())
    )
    assert not [name for name in named if not (PROJECT / name).exists()]
    assert {f"config/cluster/{path.name}" for path in FILES} <= named
