"""The request that a training ends: a file in its directory, so that it holds between two attempts too, when there is no job.

`hyperpod-lora cancel` writes it while a supervisor acts. `attempt` and `supervise` look for it, and the supervisor that acts on
it removes it. A request that no supervisor acted on still binds an automatic retry; a person who resumes clears it.
"""

from __future__ import annotations

import os
import platform
import time

from steps.protocol.rundir import TrainDir, storage_errors, write_json


def request(directory: TrainDir) -> None:
    """Ask the supervisor of this training to end it.

    Raises:
        StorageError: the directory cannot be written.
    """
    write_json(directory.cancel, {"asked_s": time.time(), "by": f"process {os.getpid()} on {platform.node()}"})


def is_requested(directory: TrainDir) -> bool:
    """Whether somebody asked that it ends."""
    try:
        return directory.cancel.is_file()
    except OSError:  # a mount that is away: it is looked for again
        return False


def clear(directory: TrainDir) -> None:
    """Remove the request: it was acted on, or is from an earlier supervisor.

    Raises:
        StorageError: the file cannot be removed.
    """
    with storage_errors(f"removing {directory.cancel}"):
        directory.cancel.unlink(missing_ok=True)
