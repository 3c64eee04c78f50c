"""The classes of failure. Pure; how they become exit codes and records is in `failure_record`."""

from __future__ import annotations

from enum import StrEnum


class FailureClass(StrEnum):
    """What went wrong, as far as the next attempt is concerned."""

    USER = "user"
    """The training itself: its code, its data, its numbers. Trying again gives the same."""
    CONFIG = "config"
    """Settings, model or data that do not fit together."""
    OUT_OF_MEMORY = "out_of_memory"
    IMAGE = "image"
    PREEMPTED = "preempted"
    """Asked to stop by the platform or a person."""
    NODE = "node"
    ACCELERATOR = "accelerator"
    NETWORK = "network"
    STORAGE = "storage"
    HANG = "hang"
    UNKNOWN = "unknown"
