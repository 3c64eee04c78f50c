"""`hyperpod-lora cancel | retry`: end a run's job so that it saves; let a run go on that was given up. Commands for `cli`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steps.errors import ClusterError, StorageError
from steps.run_place import CONFIG, ROOT, Place, look, open_cluster, place_of
from steps.runs import find_run, trainings_of

if TYPE_CHECKING:
    from steps.job.kube import Kube
    from steps.job.leftovers import RunningJob
    from steps.seen_jobs import SeenJob

LOCAL_GRACE_S = 60.0
SETTLE_S = 60.0
"""Beyond the pods' grace period, until they are gone."""
POLL_S = 1.0


@click.command()
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask.")
@CONFIG
@ROOT
def cancel(run: str, yes: bool, config: Path | None, root: str | None) -> None:
    """End a run's training: its workers save, then leave; nothing that was saved is removed. RUN as for `status`."""
    place = place_of(root, config)
    if place.settings is None:
        cancel_here(find_run(place.root, run), run, is_agreed=yes)
        return
    from steps.seen_jobs import choose

    kube = open_cluster(place.settings)
    found = choose(look(kube), run, namespace=kube.namespace)
    live = [job for job in found if not job.is_over]
    if not live:
        click.echo(f"nothing of run {run} runs: attempt {found[-1].attempt} is {found[-1].state}")
        return
    if not yes:
        names = ", ".join(f"{job.namespace}/{job.name} ({job.state}, {job.nodes} node(s))" for job in live)
        click.confirm(f"Delete PyTorchJob {names}? The workers save first", abort=True)
    cancel_jobs(kube, live, say=click.echo)
    click.echo(f"to go on: {how_to_go_on(live[-1].run_id, config)}")


def cancel_here(run: Path, given: str, *, is_agreed: bool) -> None:
    """End the processes of a run on this machine."""
    from steps.job.leftovers import cancel_running, is_watched, running_in

    trainings = trainings_of(run)
    running: list[RunningJob] = [job for path in trainings for job in running_in(path)]
    if not running:
        watched = next((path for path in trainings if is_watched(path)), None)
        if watched:
            raise StorageError(f"{watched} is between two attempts: say it again in a moment")
        click.echo(f"nothing of run {given} runs on this machine")
        return
    if not is_agreed:
        what = ", ".join(f"attempt {job.attempt} of {job.directory} ({len(job.pids)} processes)" for job in running)
        click.confirm(f"End {what}? The workers save first", abort=True)
    for job in running:
        killed = cancel_running(job, grace_s=LOCAL_GRACE_S)
        click.echo(f"attempt {job.attempt} has ended{f'; {killed} processes had to be killed' if killed else ''}")
        click.echo(kept_in(job.directory))
    click.echo(f"to go on: {how_to_go_on(run.name, None)}")


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
    from steps.checkpoints import newest_step
    from steps.rundir import TrainDir

    if not directory.is_dir():
        return f"kept: all that was saved, in {directory} (not visible from here)"
    step = newest_step(TrainDir(directory).checkpoints)
    what = f"the checkpoint of step {step}" if step else "no checkpoint was complete yet"
    return f"kept: {what}; logs and events; in {directory}"


def how_to_go_on(run_id: str, config: Path | None) -> str:
    """What to type to resume a run."""
    given = f"--config config {config} " if config else ""
    return f"python flows/lora_flow.py {given}resume --origin-run-id {run_id}"


@click.command()
@click.argument("run")
@CONFIG
@ROOT
def retry(run: str, config: Path | None, root: str | None) -> None:
    """Let a run go on that was given up: an automatic retry, or a new launcher, no longer answers with the old verdict.

    `resume` does this by itself; an automatic retry of Metaflow's or Argo's does not.
    """
    place = place_of(root, config)
    try:
        folder = find_run(place.root, run)
    except StorageError as error:
        raise StorageError(f"{error}.\n{elsewhere(place, run, config)}") from error
    trainings = trainings_of(folder)
    if not trainings:
        raise StorageError(f"run {run} has no training yet: nothing was given up")
    for path in trainings:
        click.echo(forgive(path))
    click.echo(f"to go on: {how_to_go_on(folder.name, config)}")


def elsewhere(place: Place, run: str, config: Path | None) -> str:
    """What to do on a machine that does not see the run directory."""
    if place.settings is None:
        return "If it ran on a cluster, give its --config"
    return (
        f"What was decided about a run is kept in its directory, below {place.root}, which this machine does not see. Either "
        f"say `hyperpod-lora retry {run}` where it is mounted (a pod with the claim {place.settings.cluster.claim}), or go on "
        f"from here with `{how_to_go_on(run.rpartition('/')[2], config)}`, which forgives by itself"
    )


def forgive(path: Path) -> str:
    """Clear the verdict of a training directory; says what was, and where it goes on.

    Raises:
        StorageError: a supervisor is at work, or the history is damaged.
    """
    from steps.checkpoints import newest_step
    from steps.job import history as memory
    from steps.rundir import TrainDir, held_lock

    training = TrainDir(path)
    if not training.history.is_file():
        return f"{path.name}: no attempt has begun, nothing to forgive"
    with held_lock(training.lock, timeout_s=0.0, what=f"{path}: a supervisor watches over it"):
        history = memory.load(training.history, path.name.removeprefix("train-"))
        if history.verdict is None:
            return f"{path.name}: it was not given up, nothing to forgive"
        memory.save(training.history, history.forgive())
    said = history.verdict.message.splitlines()[0]
    return (
        f"{path.name}: forgiven ({history.verdict.kind}: {said}); {len(history.attempts)} attempt(s) no longer count, "
        f"it goes on from step {newest_step(training.checkpoints)}"
    )
