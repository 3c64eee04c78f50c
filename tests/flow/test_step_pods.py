"""The steps' pods: which step gets what, and that a local run is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from steps.flow.step_pods import pod_of, step_pods
from steps.settings.config import Settings, parse_settings


def settings(**cluster: Any) -> dict[str, Any]:
    given = {"namespace": "team", "image": "registry/neuron:1", "claim": "fsx-claim", **cluster}
    return {
        "storage": {"root": "/fsx/runs", "cache": "/fsx/cache"},
        "launcher": {"kind": "pytorchjob"},
        "cluster": given,
    }


def parsed(**cluster: Any) -> Settings:
    return parse_settings(settings(**cluster))


class Step:
    """What Metaflow hands to a mutator."""

    def __init__(self) -> None:
        self.added: list[tuple[str, dict[str, Any]]] = []

    def add_decorator(self, name: str, *, deco_kwargs: dict[str, Any]) -> None:
        self.added.append((name, deco_kwargs))


class Given(dict[str, Any]):
    """A Config's value."""

    def to_dict(self) -> dict[str, Any]:
        return dict(self)


class Flow:
    def __init__(self, config: dict[str, Any] | None) -> None:
        self.configs = [("config", None if config is None else Given(config))]
        self.steps = [(name, Step()) for name in ("start", "train", "merge")]


def decorated(config: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    flow = Flow(config)
    step_pods().pre_mutate(flow)
    return [one for _, step in flow.steps for one in step.added]


def test_on_a_cluster_every_step_is_a_pod() -> None:
    assert [name for name, _ in decorated(settings())] == ["kubernetes"] * 3


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="no config read"),
        pytest.param({"launcher": {"kind": "local"}}, id="this machine"),
        pytest.param(settings(steps={"enabled": False}), id="a machine that sees the shared file system"),
    ],
)
def test_elsewhere_no_step_is_a_pod(config: dict[str, Any] | None) -> None:
    assert decorated(config) == []


def test_a_pod_has_what_the_config_says_and_no_accelerator() -> None:
    given = parsed(
        image_pull_secrets=["registry"],
        tolerations=[{"key": "dedicated", "operator": "Exists", "tolerationSeconds": 30}],
        labels={"team": "research"},
        annotations={"cost": "42"},
        instance_type="trn1.32xlarge",
        token_secret="hub",
        volumes=[{"name": "tools", "claim": "tools", "mount_path": "/opt/tools"}],
        steps={
            "service_account": "lora",
            "cpu": 3,
            "memory_gib": 10,
            "secrets": ["storage"],
            "node_selector": {"pool": "cpu"},
        },
    )
    assert pod_of(given, "prepare") == {
        "namespace": "team",
        "image": "registry/neuron:1",
        "image_pull_policy": "IfNotPresent",
        "cpu": 3,
        "memory": 10737,
        "persistent_volume_claims": {"fsx-claim": "/fsx", "tools": "/opt/tools"},
        "service_account": "lora",
        "secrets": ["storage", "hub"],
        "image_pull_secrets": ["registry"],
        "node_selector": {"pool": "cpu"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "toleration_seconds": 30}],
        "labels": {"team": "research"},
        "annotations": {"cost": "42"},
        "security_context": {
            "run_as_user": 1000,
            "run_as_group": 1000,
            "run_as_non_root": True,
            "allow_privilege_escalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccomp_profile": {"type": "RuntimeDefault"},
        },
    }


@pytest.mark.parametrize(("step", "cpu", "token"), [("start", 1, True), ("prepare", 8, True), ("train", 1, False)])
def test_light_steps_take_one_core_and_only_fetching_ones_the_token(step: str, cpu: int, token: bool) -> None:
    made = pod_of(parsed(token_secret="hub"), step)
    assert made["cpu"] == cpu
    assert made.get("secrets", []) == (["hub"] if token else [])


def test_an_image_of_their_own_and_root_are_possible() -> None:
    made = pod_of(parsed(steps={"image": "registry/cpu:1"}, run_as_user=0), "evaluate")
    assert made["image"] == "registry/cpu:1"
    assert "security_context" not in made
