"""`hyperpod-lora preflight`: what the cluster lacks, before anything runs."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from steps.errors import ConfigError, Problem
from steps.flow.launchers import read_settings
from steps.settings.config import Settings


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The config that runs will use, config/hyperpod.yaml say.",
)
@click.option("--datastore", default="", help="As given to the run; without it as Metaflow is configured.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON, for a program.")
def preflight(config: Path, datastore: str, as_json: bool) -> None:
    """Check the cluster that a config describes, and change nothing. Exit code 1 if a run could not work."""
    from steps.flow.metaflow_internals import is_in_pod, metaflow_datastore
    from steps.preflight.finding import errors, table
    from steps.preflight.run import findings
    from steps.preflight.survey import Target

    begun_s = time.monotonic()
    target = Target(cluster_settings(config), datastore=metaflow_datastore(datastore), is_inside=is_in_pod())
    found = findings(target)
    if as_json:
        click.echo(json.dumps([asdict(item) for item in found], indent=2))
    else:
        click.echo(f"{table(found)}; {time.monotonic() - begun_s:.1f} s")
    sys.exit(1 if errors(found) else 0)


def cluster_settings(path: Path) -> Settings:
    """The settings of a config file that runs on a cluster.

    Raises:
        ConfigError: they are wrong, or describe no cluster.
    """
    settings = read_settings(path)
    if settings.launcher.kind != "pytorchjob":
        what = f"is {settings.launcher.kind!r} in {path}: no cluster is used, so there is nothing to check"
        raise ConfigError([Problem("launcher.kind", what)])
    return settings
