"""`JobSpec`: what every PyTorchJob of a training is made of, for all its attempts. `manifest` and `pod_template` write it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steps.settings.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Code:
    """An archive of the run's code on the shared file system."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What one job on the cluster is made of, the same for all its attempts."""

    cluster: Cluster
    run: str
    """`<flow>/<run id>`."""
    step: str
    code: Code
    grace_s: float
    """Time between SIGTERM and SIGKILL."""
    total_s: float
    """After so many seconds the kubelet ends the pods, whoever else is alive."""
    owner: Mapping[str, Any] | None = None
    """Owner reference: the workflow or batch job that this run lives in; with it the job is removed."""
    startup_s: float = 1800.0
    """For so long it is waited for all pods to run: told to a person, and decided by the supervisor."""
