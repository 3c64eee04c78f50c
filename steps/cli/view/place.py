"""Where a run is looked for, this machine or a cluster, and what is seen there: shared by the commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steps.cli.view.run_folders import NEWEST, storage_root

if TYPE_CHECKING:
    from steps.cli.view.cluster_jobs import SeenJob
    from steps.pytorchjob.client import Kube
    from steps.settings.config import Settings

CONFIG = click.option(
    "--config",
    envvar="HYPERPOD_LORA_CONFIG",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The config that the run used, config/hyperpod.yaml say; also from HYPERPOD_LORA_CONFIG. Without it: this machine.",
)
ROOT = click.option("--root", help="Another storage.root than the config's; relative to the project's folder.")
PATIENCE_S = 30.0
"""A person waits for the API no longer than this."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is looked for."""

    root: Path
    settings: Settings | None
    """Of a cluster; None: this machine."""


def place_of(root: str | None, config: Path | None) -> Place:
    """The place that the options name.

    Raises:
        ConfigError: the config is wrong.
    """
    if config is None:
        return Place(storage_root(root or ".lora"), None)
    from steps.flow.launchers import read_settings

    settings = read_settings(config)
    return Place(storage_root(root or settings.storage.root), settings if settings.is_on_cluster else None)


def open_cluster(settings: Settings) -> Kube:
    """The configured namespace, with a person's patience.

    Raises:
        ClusterError: there is no usable Kubernetes configuration.
    """
    from steps.flow.launchers import connect

    return connect(settings, patience_s=PATIENCE_S, notice=say_aside)


def look(kube: Kube) -> list[SeenJob]:
    """Every job of ours in the namespace, the newest last.

    Raises:
        ClusterError: the API refused, or is away.
    """
    from steps.cli.view.cluster_jobs import SELECTOR, see_all

    jobs = kube.list("pytorchjobs", label_selector=SELECTOR).items
    pods = kube.list("pods", label_selector=SELECTOR).items
    seen = see_all(jobs, pods, {})
    waiting = [job.name for job in seen if not job.is_over and len(job.pods) < job.nodes][-NEWEST:]
    return see_all(jobs, pods, {name: _warnings(kube, name) for name in waiting}) if waiting else seen


def _warnings(kube: Kube, name: str) -> str:
    """Why its pods do not come: only the events say."""
    found = [event for event in kube.events(name) if event.get("type") == "Warning"]
    return "; ".join(dict.fromkeys(f"{event['reason']}: {event['message']}" for event in found[-3:]))


def say_aside(sentence: str) -> None:
    """On stderr, so that a pipe gets the answer alone."""
    click.echo(f"({sentence})", err=True)
