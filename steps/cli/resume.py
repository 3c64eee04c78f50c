"""`hyperpod-lora resume`: Metaflow's `resume` of the flow, shown as `run` shows it."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("run_id", default="")
def resume(run_id: str) -> None:
    """Go on with a run where it stopped; without RUN_ID, with the newest."""
    from steps.flow.process import run_flow

    sys.exit(run_flow(["resume", *(["--origin-run-id", run_id.rpartition("/")[2]] if run_id else [])]))
