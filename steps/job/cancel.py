"""The request that a training ends: a file in its directory, so that it holds between two attempts too, when there is no job.

`hyperpod-lora cancel` writes it while a supervisor acts. `attempt` and `supervise` look for it, and the supervisor that acts on
it removes it. A request that no supervisor acted on still binds an automatic retry; a person who resumes clears it.

A flow may be before its training, or between two jobs: then the request lies in the run's directory and names the flows that
were at work. It binds these, at whatever try, and no flow that a person starts later.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Collection
from pathlib import Path

from steps.errors import JobCancelled, StorageError
from steps.protocol.run_options import how_to_resume
from steps.protocol.rundir import RunDir, TrainDir, read_json, storage_errors, write_json


def request(directory: TrainDir) -> None:
    """Ask the supervisor of this training to end it.

    Raises:
        StorageError: the directory cannot be written.
    """
    write_json(directory.cancel, _who())


def request_of_flows(run: RunDir, flows: Collection[str]) -> None:
    """Ask flows, by their run ids, to begin nothing more.

    Raises:
        StorageError: the directory cannot be written.
    """
    write_json(run.cancel, {**_who(), "flows": sorted(flows)})


def _who() -> dict[str, object]:
    return {"asked_s": time.time(), "by": f"process {os.getpid()} on {platform.node()}"}


def is_requested(directory: TrainDir) -> bool:
    """Whether somebody asked that it ends."""
    try:
        return directory.cancel.is_file()
    except OSError:  # a mount that is away: it is looked for again
        return False


def is_asked_of(run: RunDir, flow: str) -> bool:
    """Whether somebody asked this flow to begin nothing more."""
    try:
        return bool(flow) and flow in read_json(run.cancel).get("flows", ())
    except (StorageError, TypeError):
        return False


def require_wanted(run: RunDir, flow: str, what: str) -> None:
    """The flow may begin `what`. A request not to is acted on, once.

    Raises:
        JobCancelled: somebody asked that it begins nothing more.
        StorageError: the request cannot be removed.
    """
    if not is_asked_of(run, flow):
        return
    _remove(run.cancel)
    raise JobCancelled(
        f"a person cancelled this run before {what} began; what was made is kept in {run.path}, and "
        f"`{how_to_resume(run.path)}` goes on",
        failure_class="preempted",
    )


def take_over(run: RunDir, flow: str, directory: TrainDir) -> bool:
    """Whether this flow's job is not wanted any more; the request is its supervisor's from now on, who remembers it.

    Raises:
        StorageError: the directory cannot be written.
    """
    if not is_asked_of(run, flow):
        return False
    request(directory)
    _remove(run.cancel)
    return True


def clear(directory: TrainDir) -> None:
    """Remove the request: it came too late, or is from an earlier supervisor.

    Raises:
        StorageError: the file cannot be removed.
    """
    _remove(directory.cancel)


def conclude(directory: TrainDir) -> None:
    """Remove the request, also that of the flow: its training ends, and the flow with it.

    Raises:
        StorageError: a file cannot be removed.
    """
    _remove(directory.cancel)
    _remove(RunDir(directory.path.parent).cancel)


def _remove(path: Path) -> None:
    with storage_errors(f"removing {path}"):
        path.unlink(missing_ok=True)
