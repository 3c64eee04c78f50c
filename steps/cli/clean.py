"""`hyperpod-lora clean`: what runs left behind, shown and removed; what is in use stays, and is named with the reason."""

from __future__ import annotations

import os
import platform
import shutil
import uuid
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steps.cli.view.needed import needed
from steps.cli.view.place import CONFIG, ROOT, Place, look, open_cluster, place_of
from steps.cli.view.run_folders import beside_adapters, find_run, run_folders
from steps.errors import StorageError
from steps.plain_text import counted

if TYPE_CHECKING:
    from steps.job.local_jobs import RunningJob


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@CONFIG
@ROOT
@click.option(
    "--older-than-days",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Leave runs alone with any younger file.",
)
@click.option("--damaged", is_flag=True, help="Only what was set aside as damaged; the runs themselves stay.")
@click.option(
    "--keep", type=click.Choice(["adapters"]), help="Remove checkpoints, merged models and prepared data only."
)
@click.option("--yes", is_flag=True, help="Remove; without it, only show.")
def clean(
    runs: tuple[str, ...],
    config: Path | None,
    root: str | None,
    older_than_days: float,
    damaged: bool,
    keep: str | None,
    yes: bool,
) -> None:
    """Show what runs left behind, and remove it with --yes: processes without a launcher, run directories.

    RUN: run ids, `Flow/run id` or runs' folders; nothing for all of them. What any machine uses is left alone, and so is what
    a run that stays was made from (its base model, its first adapter). Where runs train on a cluster, give their --config: its
    jobs are looked at too.
    """
    from steps.job.local_jobs import set_aside_below

    place = place_of(root, config)
    chosen = {find_run(place.root, given).resolve() for given in runs}
    if keep and damaged:
        raise click.UsageError("--keep and --damaged: one or the other")
    if damaged:
        found = set_aside_below(place.root)
        clear(
            [path for path in found if not runs or not chosen.isdisjoint(path.resolve().parents)],
            shutil.rmtree,
            yes=yes,
        )
        return
    on_cluster = trainings_on(place)
    ended = end_unwatched(place.root, chosen, yes=yes)

    def reasons(run: Path) -> list[str]:
        return in_use_by(run, on_cluster, ended, is_asked=config is not None)

    old_enough = run_folders(place.root, older_than_s=older_than_days * 86400)
    asked = [run for run in old_enough if not runs or run.resolve() in chosen]
    unused = unused_runs(place.root, asked, reasons, all_stay=bool(keep))
    if keep:
        large = {folder: run for run in unused for folder in beside_adapters(run)}
        clear(list(large), lambda path: remove_unless(path, partial(reasons, large[path]), large[path]), yes=yes)
        return
    included = ", merged models and adapters included"
    clear(unused, lambda run: remove_unless(run, partial(reasons, run), run), yes=yes, included=included)


def unused_runs(
    root: Path, asked: Sequence[Path], reasons: Callable[[Path], list[str]], *, all_stay: bool = False
) -> list[Path]:
    """Those of the runs asked for that nobody uses, in their order; the others are told with their reasons.

    `all_stay`: parts of runs go and no run, so whatever any other run was made from is needed.
    """
    unused, left = [], {}
    for path in asked:
        if why := reasons(path):
            left[path] = why
        else:
            unused.append(path)
    runs = run_folders(root)
    if all_stay:
        for path in unused:
            left |= needed([path], [run for run in runs if run != path])
    else:
        left |= needed(unused, [path for path in runs if path not in unused])
    for path, why in left.items():
        click.echo(f"in use, left alone: {path}: {'; '.join(why)}")
    return [path for path in unused if path not in left]


def trainings_on(place: Place) -> dict[Path, str]:
    """Training directories with a job on the cluster, and what to say of it.

    Raises:
        ClusterError: the API refused: then nothing is known to be unused.
    """
    if place.settings is None:
        return {}
    jobs = look(open_cluster(place.settings))
    return {Path(job.directory).resolve(): f"PyTorchJob {job.namespace}/{job.name} is {job.state}" for job in jobs}


def end_unwatched(root: Path, runs: Collection[Path], *, yes: bool) -> list[RunningJob]:
    """Show the jobs on this machine, of these runs if any are named; end those that nobody watches over. Returns these."""
    from steps.job.local_jobs import end_running, running_jobs

    found = []
    for job in running_jobs(root):
        if runs and Path(job.directory).resolve().parent not in runs:
            continue
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
    from steps.job.agent.in_use import REMOVAL, users_of
    from steps.job.local_jobs import unseen_attempt

    ours = {pid for job in ended for pid in job.pids}
    found = [user for user in users_of(run) if user.what != REMOVAL or user.pid != os.getpid()]
    users = [str(user) for user in found if user.pid not in ours or user.node != platform.node()]
    jobs = [words for path, words in on_cluster.items() if path.parent == run.resolve()]
    unseen = [] if is_asked or users else [words for path in run.glob("train-*") if (words := unseen_attempt(path))]
    return [*users, *jobs, *unseen]


def clear(folders: Sequence[Path], remove: Callable[[Path], None], *, yes: bool, included: str = "") -> None:
    """Show folders with their sizes; with `yes`, remove them, each whatever became of those before it.

    Raises:
        StorageError: some could not be removed; each was named with its reason.
    """
    from steps.job.local_jobs import size_of

    failed = 0
    for path in folders:
        click.echo(f"{size_of(path) / 2**20:10,.1f} MiB  {path}")
        if yes:
            failed += not _is_removed(path, remove)
    if failed:
        raise StorageError(f"{failed} of {counted(len(folders), 'folder')} could not be removed, each named above")
    if not yes:
        click.echo(f"Nothing was removed; --yes removes all of this{included}.")


def _is_removed(path: Path, remove: Callable[[Path], None]) -> bool:
    """Remove a folder, or say why not."""
    try:
        remove(path)
    except (StorageError, OSError) as error:
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename not in (None, str(path)) else ""
        said = (error.strerror or error) if isinstance(error, OSError) else error
        owner = f" (of user {path.stat().st_uid})" if path.is_dir() and path.stat().st_uid != os.getuid() else ""
        click.echo(f"  not removed: {path}{owner}: {said}{where}", err=True)
        return False
    return True


def remove_unless(folder: Path, reasons: Callable[[], list[str]], run: Path) -> None:
    """Delete a run, or a folder of it, that nobody has begun to use: asked again when all see that it is being removed.

    Raises:
        OSError, StorageError: it cannot be removed.
    """
    from steps.job.agent.in_use import in_removal

    with in_removal(run):
        if why := reasons():
            click.echo(f"  in use since it was shown, left alone: {run}: {'; '.join(why)}")
            return
        gone = out_of_the_way(folder)
    shutil.rmtree(gone)


def out_of_the_way(path: Path) -> Path:
    """Rename a folder that is to be deleted, so that half a run is never mistaken for one; the next `clean` finds it."""
    gone = path.with_name(f".{path.name.removeprefix('.')}.removed-{uuid.uuid4().hex[:8]}")
    path.rename(gone)
    return gone
