"""`hyperpod-lora cancel`: end a run's job so that it saves, and have its launcher make no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steps.cli.view.ending import POLL_S, ask_elsewhere, cancel_jobs, kept_in, wait_until_heard
from steps.cli.view.place import CONFIG, ROOT, look, open_cluster, place_of
from steps.cli.view.run_folders import find_run, trainings_of
from steps.errors import StorageError
from steps.plain_text import command, counted
from steps.protocol.run_options import how_to_resume

if TYPE_CHECKING:
    from steps.cli.view.cluster_jobs import SeenJob
    from steps.job.local_jobs import RunningJob
    from steps.pytorchjob.client import Kube


@click.command()
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", "wait_s", default=0.0, help="Wait so many seconds for its next job, if there is none just now.")
@CONFIG
@ROOT
def cancel(run: str, yes: bool, wait_s: float, config: Path | None, root: str | None) -> None:
    """End a run's training: its workers save, then leave; nothing that was saved is removed. RUN as for `status`.

    It holds between two attempts too, where the run directory is mounted; elsewhere there must be a job: see --wait.
    """
    place = place_of(root, config)
    if place.settings is None:
        cancel_here(find_run(place.root, run), run, is_agreed=yes)
        return
    kube = open_cluster(place.settings)
    folder = run_below(place.root, run)
    found = jobs_meant(kube, run) if folder else wait_for_job(kube, run, wait_s=wait_s)
    visible = jobs_of(folder) if folder else [Path(job.directory) for job in found[-1:]]
    supervised, live = supervised_of(visible), [job for job in found if not job.is_over]
    if not live and not supervised:
        leave_for_later(folder, visible, run, say=click.echo)
        return
    if not yes:
        names = ", ".join(f"{job.namespace}/{job.name} ({job.state}, {counted(job.nodes, 'node')})" for job in live)
        what = f"Delete PyTorchJob {names}?" if live else f"End run {run}, which is between two attempts?"
        click.confirm(f"{what} The workers save first", abort=True)
    asked = ask_all(folder, unfinished_of(visible), say=click.echo)
    cancel_jobs(kube, live, say=click.echo)
    wait_until_heard([path for path in supervised if path in asked], say=click.echo)
    if folder and not live and not asked:
        raise StorageError(f"run {run} goes on: it has no job just now that could be deleted; {as_its_user(folder)}")
    click.echo(f"to go on: {command('resume', live[-1].run_id) if live else how_to_resume(supervised[-1].parent)}")


def wait_for_job(kube: Kube, run: str, *, wait_s: float, sleep: Callable[[float], None] = time.sleep) -> list[SeenJob]:
    """The jobs of a run, the newest last, once one of them is not over; what there is after `wait_s`.

    Raises:
        ClusterError: there is none.
    """
    from steps.cli.view.cluster_jobs import choose

    until_s = time.monotonic() + wait_s
    while time.monotonic() < until_s:
        found = jobs_meant(kube, run)
        if any(not job.is_over for job in found):
            return found
        sleep(POLL_S)
    return choose(look(kube), run, namespace=kube.namespace)


def jobs_meant(kube: Kube, run: str) -> list[SeenJob]:
    """The jobs of a run, the newest last; empty if there is none just now.

    Raises:
        ClusterError: there are several runs of this id.
    """
    from steps.cli.view.cluster_jobs import meant

    return meant(look(kube), run, namespace=kube.namespace)


def cancel_here(run: Path, given: str, *, is_agreed: bool) -> None:
    """End the processes of a run on this machine."""
    from steps.job.local_jobs import cancel_running, running_in, time_to_save_s, working_elsewhere

    trainings = jobs_of(run)
    supervised = supervised_of(trainings)
    running: list[RunningJob] = [job for path in trainings for job in running_in(path)]
    elsewhere = {(path, attempt): user for path in trainings for attempt, user in working_elsewhere(path).items()}
    if not running and not supervised and not elsewhere:
        leave_for_later(run, trainings, given, say=click.echo)
        return
    if not is_agreed:
        seen = [f"attempt {job.attempt} of {job.directory} ({len(job.pids)} processes)" for job in running]
        what = ", ".join(
            [*seen, *(f"attempt {number} of {path}, {user}" for (path, number), user in elsewhere.items())]
        )
        click.confirm(
            f"End {what or f'run {given}, which is between two attempts'}? The workers save first", abort=True
        )
    asked = ask_all(run, unfinished_of(trainings), say=click.echo)
    for job in running:
        limit_s = time_to_save_s(job.directory, job.attempt)
        click.echo(f"attempt {job.attempt}: its workers have up to {limit_s:.0f} s to end their step and save")
        killed = cancel_running(job)
        click.echo(f"attempt {job.attempt} has ended{f'; {killed} processes had to be killed' if killed else ''}")
        click.echo(kept_in(job.directory))
    for (path, attempt), user in elsewhere.items():
        if path in asked:
            ask_elsewhere(path, attempt, user, say=click.echo)
    wait_until_heard([path for path in supervised if path in asked], say=click.echo)
    if running or asked:
        click.echo(f"to go on: {how_to_resume(run)}")
        return
    raise StorageError(f"run {given} goes on: nothing of it could be ended by this user; {as_its_user(run)}")


def as_its_user(run: Path) -> str:
    """How to act on a run that somebody else started."""
    return f"say the same as its user: `sudo -u '#{run.stat().st_uid}' {command('cancel', run)}`"


def run_below(root: Path, given: str) -> Path | None:
    """A run's directory, if it can be seen from here."""
    try:
        return find_run(root, given)
    except StorageError:  # a laptop, or the name of a job: the cluster's own objects tell
        return None


def jobs_of(run: Path) -> list[Path]:
    """Every directory of a run in which a launcher has worked: trainings, precompilations, compilations."""
    locked = (path.parent for path in run.glob("*/supervisor.lock"))
    return sorted({*trainings_of(run), *locked}, key=lambda path: path.stat().st_mtime)


def unfinished_of(trainings: Sequence[Path]) -> list[Path]:
    """Those that a launcher acts on, or may come to act on by itself: no result, and not given up."""
    from steps.job.local_jobs import may_go_on

    supervised = supervised_of(trainings)
    return [path for path in trainings if path.is_dir() and (path in supervised or may_go_on(path))]


def leave_for_later(run: Path | None, trainings: Sequence[Path], given: str, *, say: Callable[[str], object]) -> None:
    """No job runs just now: a flow that is at another step, or a launcher that is being started anew, must find the request."""
    from steps.job.agent.in_use import flows_of

    flows = list(flows_of(run).values()) if run else []
    if not flows:
        say(f"nothing of run {given} runs just now, as far as this machine can see")
    asked = ask_all(run, unfinished_of(trainings), say=say)
    for user in flows if run in asked else ():
        say(f"{user}: its flow begins nothing after that; Ctrl-C where it runs ends it at once")
    for path in asked:
        if path == run:
            continue
        goes_on = f"`{how_to_resume(path.parent)}` goes on"
        say(f"{path.name}: a launcher that starts by itself begins no attempt; {goes_on}; {kept_in(path)}")


def supervised_of(trainings: Sequence[Path]) -> list[Path]:
    """Those that can be seen from here and that a supervisor acts on, wherever it runs."""
    from steps.job.agent.in_use import is_supervised

    return [path for path in trainings if path.is_dir() and is_supervised(path)]


def ask_all(run: Path | None, trainings: Sequence[Path], *, say: Callable[[str], object]) -> list[Path]:
    """Leave the request to end for each launcher, and for flows that have yet to start one, before any job is deleted.

    Returns the directories where it was left: trainings, and `run`.
    """
    from steps.job import cancel as requests
    from steps.job.agent.in_use import flows_of
    from steps.protocol.rundir import RunDir, TrainDir

    wishes: dict[Path, Callable[[], None]] = {path: partial(requests.request, TrainDir(path)) for path in trainings}
    if run and (flows := flows_of(run)):
        wishes[run] = partial(requests.request_of_flows, RunDir(run), flows.keys())
    left = []
    for path, leave in wishes.items():
        try:
            leave()
        except (StorageError, OSError) as error:  # another user's directory: its job can be ended all the same
            say(f"{path}: the request cannot be left there ({error}); a launcher takes the end of its job for one")
        else:
            left.append(path)
    return left
