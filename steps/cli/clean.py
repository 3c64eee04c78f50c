"""`hyperpod-lora clean`: what runs left behind on this machine, shown and removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import click

from steps.cli.run_folders import run_folders, storage_root

ROOT = click.option(
    "--root", default=".lora", show_default=True, help="storage.root of the config; relative to the project's folder."
)


@click.command()
@ROOT
@click.option("--older-than-days", default=0.0, show_default=True, help="Leave younger run directories alone.")
@click.option("--damaged", is_flag=True, help="Only what was set aside as damaged; the runs themselves stay.")
@click.option("--yes", is_flag=True, help="Remove; without it, only show.")
def clean(root: str, older_than_days: float, damaged: bool, yes: bool) -> None:
    """Show what runs left behind, and remove it with --yes: processes without a launcher, run directories."""
    from steps.job.local_jobs import end_running, is_watched, running_jobs, set_aside_below

    base = storage_root(root)
    if damaged:
        clear(set_aside_below(base), yes=yes)
        return
    for job in running_jobs(base):
        if job.is_watched:
            click.echo(f"running, watched: {job.directory} (left alone)")
            continue
        click.echo(f"running, no launcher: attempt {job.attempt} of {job.directory}, {len(job.pids)} processes")
        if yes:
            killed = end_running(job, grace_s=60.0)
            click.echo(f"  ended{f'; {killed} had to be killed' if killed else ', its state is saved'}")
    unwatched = (
        path
        for path in run_folders(base, older_than_s=older_than_days * 86400)
        if not any(is_watched(training) for training in path.glob("train-*"))
    )
    clear(unwatched, yes=yes, included=", merged models and adapters included")


def clear(folders: Iterable[Path], *, yes: bool, included: str = "") -> None:
    """Show folders with their sizes; with `yes`, remove them."""
    from steps.job.local_jobs import size_of

    for path in folders:
        click.echo(f"{size_of(path) / 2**20:10,.1f} MiB  {path}")
        if yes:
            remove(path)
    if not yes:
        click.echo(f"Nothing was removed; --yes removes all of this{included}.")


def remove(path: Path) -> None:
    """Delete a folder; first out of the way under another name, so that half a run directory is never mistaken for one."""
    gone = path.with_name(f".{path.name}.removed")
    path.rename(gone)
    shutil.rmtree(gone)
