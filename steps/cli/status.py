"""`hyperpod-lora status`: trainings, on this machine or on the cluster that a config describes.

On a cluster it reads labels and pod logs, so it works from a laptop that sees no run directory; where one is visible, it tells
more. What is shown is decided in `cluster_jobs` and `run_folders`.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steps.cli.view.place import CONFIG, ROOT, look, open_cluster, place_of
from steps.cli.view.run_folders import NEWEST, find_run, newest_trainings, story, trainings_of
from steps.cli.view.run_table import local_table
from steps.errors import ClusterError, StorageError

if TYPE_CHECKING:
    from steps.cli.view.cluster_jobs import SeenJob
    from steps.pytorchjob.client import Kube

EVENT_LINES = 2000
"""Of worker 0's log, looked through for events."""


@click.command()
@click.argument("run", default="")
@CONFIG
@ROOT
def status(run: str, config: Path | None, root: str | None) -> None:
    """Show trainings: state, progress, attempts, what they wait for, where the time went.

    RUN: a run id, `Flow/run id`, a run's folder or a PyTorchJob's name; nothing for the newest ten.
    """
    place = place_of(root, config)
    if place.settings is None:
        lines = local_status(place.root, run)
    else:
        lines = cluster_status(open_cluster(place.settings), place.root, run, now_s=time.time())
    for line in lines:
        click.echo(line)


def local_status(root: Path, run: str) -> list[str]:
    """A table of the newest trainings, or the story of each of a run's.

    Raises:
        StorageError: there is none.
    """
    found = trainings_of(find_run(root, run)) if run else newest_trainings(root)
    if not found:
        raise StorageError(f"no training {f'of run {run} ' if run else ''}below {root}")
    return [line for path in found for line in story_in(path)] if run else local_table(found)


def story_in(path: Path, **known: object) -> list[str]:
    """A training directory's story; what is `known` is known better than there."""
    from steps.job.local_jobs import describe

    return story({**describe(path), **known})


def cluster_status(kube: Kube, root: Path, run: str, *, now_s: float) -> list[str]:
    """The jobs on the cluster, each with its story where its directory is visible; then the stories without a job.

    Raises:
        ClusterError: no such run, or the API refused.
    """
    from steps.cli.view import cluster_jobs

    seen = look(kube)
    try:
        chosen = cluster_jobs.choose(seen, run, namespace=kube.namespace) if run else seen
    except ClusterError:
        with contextlib.suppress(StorageError):  # not visible here either: then the first error is the one to tell
            return local_status(root, run)
        raise
    lines: list[str] = []
    for jobs in cluster_jobs.by_training(chosen)[-NEWEST:]:
        log = kube.log(jobs[-1].pod(0), lines=EVENT_LINES) if jobs[-1].has_log(0) else ""
        lines += cluster_jobs.describe(jobs, cluster_jobs.listen(log, jobs[-1], now_s), now_s)
        lines += [f"  {line}" for line in _story_of(jobs[-1])]
    shown = {job.directory for job in chosen}
    if not run:
        lines += [line for path in newest_trainings(root) if str(path) not in shown for line in story_in(path)]
    return lines or [f"no PyTorchJob of hyperpod-lora in namespace {kube.namespace}, and no training below {root}"]


def _story_of(job: SeenJob) -> list[str]:
    """What its run directory adds; that it cannot be seen, if so."""
    path = Path(job.directory)
    if not path.is_dir():
        return ["(not visible from here: earlier attempts and checkpoints are told where it is mounted)"]
    return story_in(path, state=job.state, pids=[])[1:]
