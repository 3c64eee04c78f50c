"""Who owns the PyTorchJob: the Argo workflow that the launching step runs in.

With an owner, Kubernetes removes the job when its owner is removed. It is never the pod, nor the batch Job that Metaflow makes
for one try of a step: a drained pod, or a dead try's Job that is cleaned up a week later, must not take the training with it,
which the next try has adopted. Without an owner the lease ends the workers. Pure, except for the callable that reads a pod.
Used by the decorator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

POD_NAME = "METAFLOW_KUBERNETES_POD_NAME"
"""Metaflow sets it in its own pods, by `@kubernetes` and on Argo alike."""
OWNERS = frozenset({"Workflow"})


def find_owner(
    environment: Mapping[str, str], read_pod: Callable[[str], Mapping[str, Any] | None]
) -> dict[str, Any] | None:
    """The owner reference for the job, None outside of Metaflow's pods.

    `read_pod` gives the pod of that name in this namespace as Kubernetes writes it, or None where it may not be read.
    """
    pod = read_pod(environment[POD_NAME]) if environment.get(POD_NAME) else None
    if pod is None:
        return None
    owners = (pod.get("metadata") or {}).get("ownerReferences") or ()
    controller = next((owner for owner in owners if owner.get("controller") and owner["kind"] in OWNERS), None)
    if controller is None:
        return None
    named = {key: controller[key] for key in ("apiVersion", "kind", "name", "uid")}
    # We are not its controller's business: it counts its own pods only, and its removal must not wait for ours.
    return {**named, "controller": False, "blockOwnerDeletion": False}
