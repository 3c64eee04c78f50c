"""From settings to the launcher that a job needs: this machine's, or the cluster's. For the decorator and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import ConfigError, Problem
from steps.job.local_launcher import LocalLauncher
from steps.job.snapshot import Launcher
from steps.pytorchjob.spec import Code, JobSpec
from steps.settings.config import Settings, parse_settings

if TYPE_CHECKING:
    from steps.pytorchjob.client import Kube


def local_launcher(settings: Settings) -> Launcher:
    """Processes on this machine, under torchrun where they are several."""
    return LocalLauncher(grace_s=settings.deadlines.grace_s, lease_s=settings.cluster.lease_s)


def read_settings(path: Path) -> Settings:
    """The settings in a config file.

    Raises:
        ConfigError: no YAML, or every setting in it that is unknown or not allowed.
    """
    import yaml

    from steps.settings.yaml_text import read_yaml

    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([Problem(str(path), f"cannot be read as YAML: {error}")]) from error
    return parse_settings(raw)


def connect(settings: Settings, *, notice: Callable[[str], None], patience_s: float | None = None) -> Kube:
    """The configured namespace. `patience_s`: how long the API may be away; None: as configured.

    Raises:
        ClusterError: there is no usable Kubernetes configuration.
    """
    from steps.pytorchjob.client import Kube

    cluster = settings.cluster
    patience_s = cluster.api_patience_s if patience_s is None else patience_s
    return Kube(cluster.namespace, context=cluster.context, patience_s=patience_s, notice=notice)


def spec_of(settings: Settings, *, run: str, step: str, code: Code, owner: Mapping[str, Any] | None = None) -> JobSpec:
    """What every PyTorchJob of this step is made of; see `JobSpec` for the words."""
    deadlines = settings.deadlines
    lengths = (deadlines.grace_s, deadlines.total_s)
    return JobSpec(settings.cluster, run, step, code, *lengths, owner, startup_s=deadlines.startup_s)


def cluster_launcher(kube: Kube, spec: JobSpec, *, notice: Callable[[str], None]) -> Launcher:
    """PyTorchJobs in the configured namespace."""
    from steps.pytorchjob.launcher import KubeLauncher

    return KubeLauncher(spec, kube, notice=notice)
