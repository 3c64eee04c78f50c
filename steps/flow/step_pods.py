"""The flow's steps as pods: adds `@kubernetes` to every step when the Config names a cluster.

Used as a decorator of the flow. A static `@kubernetes` would refuse every run on a local datastore, so it is added from the
Config, wherever the flow is read: run, resume, Argo, inside the pods. No accelerator is asked for here: preparing, merging
and evaluating run on processors, and training asks for its own nodes (`steps/pytorchjob`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaflow import FlowMutator

if TYPE_CHECKING:
    from steps.settings.cluster import Cluster
    from steps.settings.config import Settings

HEAVY = frozenset({"prepare", "merge", "evaluate", "publish"})
"""Steps that work with the data or the weights; the others decide, launch and tell."""
ON_HUB = frozenset({"start", "prepare", "publish"})
"""Steps that may ask the hub for something gated, or bring it something."""
LIGHT_CPU, LIGHT_MEMORY_GIB = 1.0, 4.0


class step_pods(FlowMutator):
    """Flow decorator: each step in a pod of its own, where the Config says so."""

    def pre_mutate(self, mutable_flow: Any) -> None:
        """Add `@kubernetes` to the steps (Metaflow calls this once the Config is read)."""
        from steps.settings.config import parse_settings

        raw = dict(mutable_flow.configs).get("config")
        if not raw or raw["launcher"]["kind"] != "pytorchjob":
            return
        settings = parse_settings(raw.to_dict())
        if not settings.cluster.steps.enabled:
            return
        for name, step in mutable_flow.steps:
            step.add_decorator("kubernetes", deco_kwargs=pod_of(settings, name))


def pod_of(settings: Settings, step: str) -> dict[str, Any]:
    """The arguments of `@kubernetes` for one step."""
    cluster, pods = settings.cluster, settings.cluster.steps
    cpu, memory_gib = (pods.cpu, pods.memory_gib) if step in HEAVY else (LIGHT_CPU, LIGHT_MEMORY_GIB)
    found: dict[str, Any] = {
        "namespace": cluster.namespace,
        "image": pods.image or cluster.image,
        "image_pull_policy": cluster.image_pull_policy,
        "cpu": cpu,
        "memory": round(memory_gib * 2**30 / 1e6),  # Metaflow writes it with an M
        "persistent_volume_claims": claims_of(cluster),
    }
    optional = {
        "service_account": pods.service_account,
        "secrets": secrets_of(cluster, step),
        "image_pull_secrets": list(cluster.image_pull_secrets),
        "node_selector": dict(pods.node_selector),
        "tolerations": [snake_case(item) for item in cluster.tolerations],
        "labels": dict(cluster.labels),
        "annotations": dict(cluster.annotations),
        "security_context": security_of(cluster),
    }
    return found | {key: value for key, value in optional.items() if value}


def claims_of(cluster: Cluster) -> dict[str, str]:
    """The shared file system, and further claims; `@kubernetes` mounts nothing else."""
    further = {item.claim: item.mount_path for item in cluster.volumes if item.claim}
    return {**further, cluster.claim: cluster.mount_path}


def secrets_of(cluster: Cluster, step: str) -> list[str]:
    """Secrets whose keys become variables of this step's pod; the hub's token goes only where the hub is asked."""
    token = [cluster.token_secret] if cluster.token_secret and step in ON_HUB else []
    return [*cluster.steps.secrets, *token]


def security_of(cluster: Cluster) -> dict[str, Any]:
    """As the workers', so that all files on the shared file system have one owner, and PodSecurity `restricted` is content."""
    if not cluster.run_as_user:
        return {}
    return {
        "run_as_user": cluster.run_as_user,
        "run_as_group": cluster.run_as_user,
        "run_as_non_root": True,
        "allow_privilege_escalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccomp_profile": {"type": "RuntimeDefault"},
    }


def snake_case(toleration: Mapping[str, Any]) -> dict[str, Any]:
    """A toleration as Kubernetes' Python client spells it."""
    return {"toleration_seconds" if key == "tolerationSeconds" else key: value for key, value in toleration.items()}
