"""`hyperpod-lora retry`: let a run go on that was given up."""

from __future__ import annotations

from pathlib import Path

import click

from steps.cli.view.place import CONFIG, ROOT, Place, place_of
from steps.cli.view.run_folders import find_run, trainings_of
from steps.errors import StorageError
from steps.plain_text import command, counted
from steps.protocol.run_options import how_to_resume


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
        click.echo(reset_retry_count(path))
    click.echo(f"to go on: {how_to_resume(folder)}")


def elsewhere(place: Place, run: str, config: Path | None) -> str:
    """What to do on a machine that does not see the run directory."""
    if place.settings is None:
        return "If it ran on a cluster, give its --config"
    return (
        f"What was decided about a run is kept in its directory, below {place.root}, which this machine does not see. Either "
        f"say `{command('retry', run)}` where it is mounted (a pod with the claim {place.settings.cluster.claim}), or go on "
        f"from here with `{command('resume', run.rpartition('/')[2])}`, which does the same by itself"
    )


def reset_retry_count(path: Path) -> str:
    """Clear the verdict of a training directory; says what was, and where it goes on.

    Raises:
        StorageError: a supervisor is at work, or the history is damaged.
    """
    from steps.job import history as memory
    from steps.protocol.checkpoints import newest_step
    from steps.protocol.rundir import TrainDir, held_lock

    training = TrainDir(path)
    if not training.history.is_file():
        return f"{path.name}: no attempt has begun, nothing to reset"
    with held_lock(training.lock, timeout_s=0.0, what=f"{path}: a supervisor watches over it"):
        history = memory.load(training.history, path.name.removeprefix("train-"))
        if history.verdict is None:
            return f"{path.name}: it was not given up, nothing to reset"
        memory.save(training.history, history.reset_retry_count())
    said = history.verdict.message.splitlines()[0]
    return (
        f"{path.name}: retry count reset ({history.verdict.kind}: {said}); {counted(len(history.attempts), 'attempt')} "
        f"before this no longer {'counts' if len(history.attempts) == 1 else 'count'}, "
        f"it goes on from step {newest_step(training.checkpoints)}"
    )
