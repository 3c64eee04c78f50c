"""How a job is ended at a person's wish: asked, waited for, deleted; and what is kept. For `cancel`, which says whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steps.errors import ClusterError

if TYPE_CHECKING:
    from steps.cli.view.cluster_jobs import SeenJob
    from steps.job.agent.in_use import User
    from steps.pytorchjob.client import Kube

SETTLE_S = 60.0
"""Beyond the pods' grace period, until they are gone."""
HEARD_S = 180.0
"""For a launcher that collects the evidence of an attempt, or waits until its pods are gone."""
POLL_S = 1.0


def ask_elsewhere(
    path: Path,
    attempt: int,
    user: User,
    *,
    say: Callable[[str], object],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """End an attempt whose workers cannot be signalled from here: their agent is asked through the run directory."""
    from steps.job.local_jobs import WORD_S, ask_to_stop, time_to_save_s, working_elsewhere

    limit_s = time_to_save_s(path, attempt)
    ask_to_stop(path, attempt, grace_s=limit_s, reason="cancelled")
    say(f"attempt {attempt}, {user}: asked to stop; its workers have up to {limit_s:.0f} s to end their step and save")
    until_s = clock() + limit_s + WORD_S
    while attempt in working_elsewhere(path) and clock() < until_s:
        sleep(POLL_S)
    say(
        f"attempt {attempt} {'has not answered' if attempt in working_elsewhere(path) else 'has ended'}; {kept_in(path)}"
    )


def wait_until_heard(
    trainings: Sequence[Path],
    *,
    say: Callable[[str], object],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for the supervisors, and say what is kept; one that does not answer finds the request before its next attempt."""
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
        let_save(kube, job, say=say, clock=clock, sleep=sleep)
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


def let_save(
    kube: Kube,
    job: SeenJob,
    *,
    say: Callable[[str], object],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Where a step takes longer than the pods' grace period, the workers are asked first, and the deletion waits for them."""
    from steps.job.local_jobs import ask_to_stop, time_to_save_s

    directory = Path(job.directory)
    limit_s = time_to_save_s(directory, job.attempt) if directory.is_dir() else 0.0
    if limit_s <= job.grace_s or not ask_to_stop(directory, job.attempt, grace_s=limit_s, reason="cancelled"):
        return
    say(f"{job.name}: a step takes longer than {job.grace_s:.0f} s; the workers have up to {limit_s:.0f} s to save")
    until_s = clock() + limit_s
    while clock() < until_s and any(phase == "Running" for phase in _phases(kube, job)):
        sleep(POLL_S)


def _phases(kube: Kube, job: SeenJob) -> list[str]:
    pods = kube.list("pods", label_selector=f"training.kubeflow.org/job-name={job.name}").items
    return [str(pod["status"].get("phase")) for pod in pods]


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
    """What a cancelled training leaves, and what could not be saved."""
    from steps.job.local_jobs import steps_done
    from steps.protocol.checkpoints import newest_step
    from steps.protocol.rundir import TrainDir

    if not directory.is_dir():
        return f"kept: all that was saved, in {directory} (not visible from here)"
    step, done = newest_step(TrainDir(directory).checkpoints), steps_done(directory)
    what = f"the checkpoint of step {step}" if step else "no checkpoint was complete yet"
    lost = f"; steps {step + 1} to {done} could not be saved within the grace period (deadlines.grace_s), and are done again"
    return f"kept: {what}{lost if done > step else ''}; logs and events; in {directory}"
