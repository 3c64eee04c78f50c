"""`hyperpod-lora logs`: a rank's log, from its pod or from the run directory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steps.cli.view.place import CONFIG, ROOT, Place, look, open_cluster, place_of, say_aside
from steps.cli.view.run_folders import find_run, newest_trainings, trainings_of
from steps.errors import ClusterError, StorageError

if TYPE_CHECKING:
    from steps.cli.view.cluster_jobs import SeenJob
    from steps.pytorchjob.client import Kube

SPARE = 4
"""Not every event becomes a sentence: so many more lines are read than shown."""


@click.command()
@click.argument("run", default="")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Whose log.")
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows, into the next attempt too.")
@click.option("--lines", type=click.IntRange(min=1), default=100, show_default=True, help="Last lines to begin with.")
@click.option("--raw", is_flag=True, help="Events as they are written, not as sentences.")
@CONFIG
@ROOT
def logs(run: str, rank: int, follow: bool, lines: int, raw: bool, config: Path | None, root: str | None) -> None:
    """Show a rank's log: from its pod, or from the run directory. RUN as for `status`; nothing for the newest."""
    from steps.cli.view.log_source import worded

    place = place_of(root, config)
    asked = lines if raw or follow else SPARE * lines
    if place.settings is None:
        found = local_log(place.root, run, rank, asked, follow=follow)
    else:
        found = cluster_log(open_cluster(place.settings), place, run, rank, asked, follow=follow)
    shown: Iterable[str] = worded(found, is_raw=raw)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end --follow
        for line in shown if follow else deque(shown, maxlen=lines):
            click.echo(line)


def local_log(root: Path, run: str, rank: int, lines: int, *, follow: bool) -> Iterable[str]:
    """From the run directory.

    Raises:
        StorageError: no such run, or no such log.
    """
    found = trainings_of(find_run(root, run)) if run else newest_trainings(root)
    if not found:
        has = f"run {run} has no training yet" if run else f"there is no training below {root}"
        raise StorageError(f"{has}, so there is no log")
    return directory_log(found[-1], rank, lines, follow=follow)


def directory_log(directory: Path, rank: int, lines: int, *, follow: bool) -> Iterable[str]:
    """From a training directory."""
    from steps.cli.view import log_source
    from steps.job.agent.in_use import is_supervised
    from steps.job.local_jobs import running_in

    if not follow:
        return log_source.last_lines(log_source.log_file(directory, log_source.newest_attempt(directory), rank), lines)

    def is_running() -> bool:
        return is_supervised(directory) or bool(running_in(directory))

    return log_source.follow_file(directory, rank, is_running=is_running, lines=lines, note=say_aside)


def cluster_log(kube: Kube, place: Place, run: str, rank: int, lines: int, *, follow: bool) -> Iterable[str]:
    """From the pod of the newest attempt; from the run directory where the pod is gone and the directory visible.

    Raises:
        ClusterError: no such run or rank, or the API refused.
        StorageError: the pod is gone, and the directory holds no such log.
    """
    from steps.cli.view import cluster_jobs, log_source

    def newest() -> SeenJob:
        seen = look(kube)
        if not run and seen:
            return seen[-1]
        return cluster_jobs.choose(seen, run, namespace=kube.namespace)[-1]

    def newest_or_none() -> SeenJob | None:
        with contextlib.suppress(ClusterError):
            return newest()
        return None

    try:
        job = newest()
    except ClusterError:
        with contextlib.suppress(StorageError):
            return local_log(place.root, run, rank, lines, follow=follow)
        raise
    log_source.require_rank(job, rank)
    if follow:
        return log_source.follow_pods(kube, newest_or_none, rank, lines=lines, note=say_aside)
    if job.has_log(rank):
        return log_source.pod_lines(kube, job, rank, lines=lines)
    if job.is_over and Path(job.directory).is_dir():
        return directory_log(Path(job.directory), rank, lines, follow=False)
    raise ClusterError(f"pod {job.pod(rank)} has no log: the job is {job.state}. {job.snapshot.message}".strip())
