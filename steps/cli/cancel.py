"""`hyperpod-lora cancel`: end a run's job so that it saves, and have its launcher make no other. A command for `cli`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steps.cli.place import CONFIG, ROOT, how_to_go_on, look, open_cluster, place_of
from steps.cli.run_folders import find_run, trainings_of
from steps.errors import ClusterError, StorageError

if TYPE_CHECKING:
    from steps.cli.cluster_jobs import SeenJob
    from steps.job.local_jobs import RunningJob
    from steps.pytorchjob.client import Kube

LOCAL_GRACE_S = 60.0
SETTLE_S = 60.0
"""Beyond the pods' grace period, until they are gone."""
HEARD_S = 180.0
"""For a launcher that collects the evidence of an attempt, or waits until its pods are gone."""
POLL_S = 1.0


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
    supervised = supervised_below(place.root, run)
    found = named(look(kube), run) if supervised else wait_for_job(kube, run, wait_s=wait_s)
    supervised = supervised or supervised_of([Path(job.directory) for job in found[-1:]])
    live = [job for job in found if not job.is_over]
    if not live and not supervised:
        click.echo(f"nothing of run {run} runs: attempt {found[-1].attempt} is {found[-1].state}")
        return
    if not yes:
        names = ", ".join(f"{job.namespace}/{job.name} ({job.state}, {job.nodes} node(s))" for job in live)
        what = f"Delete PyTorchJob {names}?" if live else f"End run {run}, which is between two attempts?"
        click.confirm(f"{what} The workers save first", abort=True)
    ask_all(supervised)
    cancel_jobs(kube, live, say=click.echo)
    wait_until_heard(supervised, say=click.echo)
    click.echo(f"to go on: {how_to_go_on(live[-1].run_id if live else supervised[-1].parent.name, config)}")


def wait_for_job(kube: Kube, run: str, *, wait_s: float, sleep: Callable[[float], None] = time.sleep) -> list[SeenJob]:
    """The jobs of a run, the newest last, once one of them is not over; what there is after `wait_s`.

    Raises:
        ClusterError: there is none.
    """
    from steps.cli.cluster_jobs import choose

    until_s = time.monotonic() + wait_s
    while time.monotonic() < until_s:
        found = named(look(kube), run)
        if any(not job.is_over for job in found):
            return found
        sleep(POLL_S)
    return choose(look(kube), run, namespace=kube.namespace)


def named(jobs: Sequence[SeenJob], run: str) -> list[SeenJob]:
    """Those of a run; it may be told by the name of a job."""
    return [job for job in jobs if run in (job.run, job.run_id, job.name)]


def cancel_here(run: Path, given: str, *, is_agreed: bool) -> None:
    """End the processes of a run on this machine."""
    from steps.job.local_jobs import cancel_running, running_in

    trainings = trainings_of(run)
    supervised = supervised_of(trainings)
    running: list[RunningJob] = [job for path in trainings for job in running_in(path)]
    if not running and not supervised:
        click.echo(f"nothing of run {given} runs on this machine")
        return
    if not is_agreed:
        what = ", ".join(f"attempt {job.attempt} of {job.directory} ({len(job.pids)} processes)" for job in running)
        click.confirm(
            f"End {what or f'run {given}, which is between two attempts'}? The workers save first", abort=True
        )
    ask_all(supervised)
    for job in running:
        killed = cancel_running(job, grace_s=LOCAL_GRACE_S)
        click.echo(f"attempt {job.attempt} has ended{f'; {killed} processes had to be killed' if killed else ''}")
        click.echo(kept_in(job.directory))
    wait_until_heard(supervised, say=click.echo)
    click.echo(f"to go on: {how_to_go_on(run.name, None)}")


def supervised_below(root: Path, given: str) -> list[Path]:
    """The trainings of a run that a supervisor acts on, as far as they can be seen from here."""
    try:
        return supervised_of(trainings_of(find_run(root, given)))
    except StorageError:  # a laptop, or the name of a job: the cluster's own objects tell
        return []


def supervised_of(trainings: Sequence[Path]) -> list[Path]:
    """Those that can be seen from here and that a supervisor acts on, wherever it runs."""
    from steps.job.agent.in_use import is_supervised

    return [path for path in trainings if path.is_dir() and is_supervised(path)]


def ask_all(trainings: Sequence[Path]) -> None:
    """Leave the wish to end for each one's supervisor: before any job is deleted, so that no other is made."""
    from steps.job.cancel import request
    from steps.protocol.rundir import TrainDir

    for path in trainings:
        request(TrainDir(path))


def wait_until_heard(
    trainings: Sequence[Path],
    *,
    say: Callable[[str], object],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for the supervisors, and say what is kept; one that does not answer finds the wish before its next attempt."""
    from steps.job.cancel import is_requested
    from steps.protocol.rundir import TrainDir

    until_s = clock() + HEARD_S
    for path in trainings:
        while is_requested(TrainDir(path)) and clock() < until_s:
            sleep(POLL_S)
        if is_requested(TrainDir(path)):
            say(
                f"{path}: its launcher has not answered within {HEARD_S:.0f} s; it begins no other attempt before it has"
            )
        else:
            say(f"{path.name}: its launcher begins no further attempt")
        say(kept_in(path))


def cancel_jobs(
    kube: Kube,
    jobs: Sequence[SeenJob],
    *,
    say: Callable[[str], object],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Delete jobs in the foreground, wait until their pods are gone, and say what is kept.

    Raises:
        ClusterError: a pod did not go, or the API refused.
    """
    for job in jobs:
        kube.delete(job.name)
        say(f"{job.namespace}/{job.name}: deletion asked for; the workers have {job.grace_s:.0f} s to save")
    for job in jobs:
        until_s = clock() + job.grace_s + SETTLE_S
        while left := _left(kube, job):
            if clock() > until_s:
                raise ClusterError(_stuck(job, left))
            sleep(POLL_S)
        say(f"{job.name} and its pods are gone")
        say(kept_in(Path(job.directory)))


def _left(kube: Kube, job: SeenJob) -> list[tuple[str, str]]:
    """(name, node) of the job's pods that are still there."""
    pods = kube.list("pods", label_selector=f"training.kubeflow.org/job-name={job.name}").items
    found = [(pod["metadata"]["name"], str(pod["spec"].get("nodeName") or "no node")) for pod in pods]
    return found or ([(job.name, "its controller")] if kube.job(job.name) else [])


def _stuck(job: SeenJob, left: Sequence[tuple[str, str]]) -> str:
    where = ", ".join(f"{name} on {node}" for name, node in left)
    return (
        f"{job.namespace}/{job.name} is being deleted, but {where} did not go within {job.grace_s + SETTLE_S:.0f} s: a node that "
        f"does not answer keeps its pods; look with `kubectl get nodes`, and if it is gone for good: `kubectl -n {job.namespace} "
        f"delete pod --force {left[0][0]}`"
    )


def kept_in(directory: Path) -> str:
    """What a cancelled training leaves."""
    from steps.protocol.checkpoints import newest_step
    from steps.protocol.rundir import TrainDir

    if not directory.is_dir():
        return f"kept: all that was saved, in {directory} (not visible from here)"
    step = newest_step(TrainDir(directory).checkpoints)
    what = f"the checkpoint of step {step}" if step else "no checkpoint was complete yet"
    return f"kept: {what}; logs and events; in {directory}"
