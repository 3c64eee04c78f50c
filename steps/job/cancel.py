"""A person's wish that a training ends, left in its directory: it holds between two attempts too, when there is no job.

`hyperpod-lora cancel` leaves it while a supervisor acts; `attempt` and `supervise` look for it, and who fulfils it removes it.
One that nobody came to fulfil binds an automatic retry, and is forgotten when a person resumes.
"""

from __future__ import annotations

import os
import platform
import time

from steps.protocol.rundir import TrainDir, storage_errors, write_json


def request(directory: TrainDir) -> None:
    """Leave the wish for the supervisor that acts on this training.

    Raises:
        StorageError: the directory cannot be written.
    """
    write_json(directory.cancel, {"asked_s": time.time(), "by": f"process {os.getpid()} on {platform.node()}"})


def is_requested(directory: TrainDir) -> bool:
    """Does somebody wish that it ends?"""
    try:
        return directory.cancel.is_file()
    except OSError:  # a mount that is away: it is looked for again
        return False


def clear(directory: TrainDir) -> None:
    """It was acted on, or is from before.

    Raises:
        StorageError: the file cannot be removed.
    """
    with storage_errors(f"removing {directory.cancel}"):
        directory.cancel.unlink(missing_ok=True)
