"""`hyperpod-lora clean`: what runs left behind, shown and removed; what is in use stays, and is named with the reason."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steps.cli.view.place import CONFIG, ROOT, Place, look, open_cluster, place_of
from steps.cli.view.run_folders import run_folders

if TYPE_CHECKING:
    from steps.job.local_jobs import RunningJob


@click.command()
@CONFIG
@ROOT
@click.option("--older-than-days", default=0.0, show_default=True, help="Leave runs alone with any younger file.")
@click.option("--damaged", is_flag=True, help="Only what was set aside as damaged; the runs themselves stay.")
@click.option("--yes", is_flag=True, help="Remove; without it, only show.")
def clean(config: Path | None, root: str | None, older_than_days: float, damaged: bool, yes: bool) -> None:
    """Show what runs left behind, and remove it with --yes: processes without a launcher, run directories.

    What any machine uses is left alone. Where runs train on a cluster, give their --config: its jobs are looked at too.
    """
    from steps.job.local_jobs import set_aside_below

    place = place_of(root, config)
    if damaged:
        clear(set_aside_below(place.root), yes=yes)
        return
    on_cluster = trainings_on(place)
    ended = end_unwatched(place.root, yes=yes)
    unused = []
    for path in run_folders(place.root, older_than_s=older_than_days * 86400):
        reasons = in_use_by(path, on_cluster, ended, is_asked=config is not None)
        if reasons:
            click.echo(f"in use, left alone: {path}: {'; '.join(reasons)}")
        else:
            unused.append(path)
    clear(unused, yes=yes, included=", merged models and adapters included")


def trainings_on(place: Place) -> dict[Path, str]:
    """Training directories with a job on the cluster, and what to say of it.

    Raises:
        ClusterError: the API refused: then nothing is known to be unused.
    """
    if place.settings is None:
        return {}
    jobs = look(open_cluster(place.settings))
    return {Path(job.directory).resolve(): f"PyTorchJob {job.namespace}/{job.name} is {job.state}" for job in jobs}


def end_unwatched(root: Path, *, yes: bool) -> list[RunningJob]:
    """Show the jobs on this machine; end those that nobody watches over. Returns these."""
    from steps.job.local_jobs import end_running, running_jobs

    found = []
    for job in running_jobs(root):
        if job.is_watched or job.is_detached:
            how = "watched" if job.is_watched else "left running by a person"
            click.echo(f"running, {how}: {job.directory} (left alone)")
            continue
        found.append(job)
        click.echo(f"running, no launcher: attempt {job.attempt} of {job.directory}, {len(job.pids)} processes")
        if yes:
            killed = end_running(job)
            click.echo(f"  ended{f'; {killed} had to be killed' if killed else ', its state is saved'}")
    return found


def in_use_by(run: Path, on_cluster: dict[Path, str], ended: Collection[RunningJob], *, is_asked: bool) -> list[str]:
    """Why a run directory may not be removed, in words; empty: nobody uses it. `is_asked`: a config says where it ran."""
    from steps.job.agent.in_use import users_of
    from steps.job.local_jobs import unseen_attempt

    ours = {pid for job in ended for pid in job.pids}
    users = [str(user) for user in users_of(run) if user.pid not in ours or user.node != platform.node()]
    jobs = [words for path, words in on_cluster.items() if path.parent == run.resolve()]
    unseen = [] if is_asked or users else [words for path in run.glob("train-*") if (words := unseen_attempt(path))]
    return [*users, *jobs, *unseen]


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
