"""The exceptions of the whole project, one tree.

LoraFlowError
├── ConfigError            settings or parameters that cannot work; carries all problems at once
├── DataError              a data set that cannot be read, or that holds nothing to learn from
├── ModelError             a base model that is missing, incomplete or of the wrong kind
├── StorageError           no room on a disk, no permission, a file that vanished
├── CheckpointError        a checkpoint or an adapter that is damaged or belongs to another run
├── ClusterError           the cluster's API refused or could not be reached
│   └── ClusterForbidden       the account lacks a permission
└── JobError               the training job ended badly
    ├── JobPermanentError      trying again cannot help: a person has to change something
    ├── JobRetriesExhausted    it failed too often, or without progress
    ├── JobTimeout             a deadline passed
    ├── JobBudgetSpent         what it may use of the cluster is used
    └── JobCancelled           a person, or the platform, asked it to stop

Every message says what failed, where, what was expected and found, and what to do next. No message holds a secret.
Nothing here knows Metaflow: the decorator and the flow wrap these for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

FoundT = TypeVar("FoundT")


class LoraFlowError(Exception):
    """Base of every error that this project raises on purpose."""

    headline = "hyperpod-lora failed"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it stands (`lora.rank`, `--dataset`), and what is wrong, with what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(LoraFlowError):
    """Everything that is wrong with the settings and parameters, in one exception."""

    headline = "Invalid configuration"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class Mistakes:
    """Gathers the problems of several looks, so that a person is told all of them at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def look(self, find: Callable[[], FoundT], instead: FoundT) -> FoundT:
        """What `find` finds; `instead`, and its problems kept, where it raises a ConfigError."""
        try:
            return find()
        except ConfigError as error:
            self.problems += [problem for problem in error.problems if problem not in self.problems]
            return instead

    def tell(self) -> None:
        """Raise them, if there are any.

        Raises:
            ConfigError: with every problem.
        """
        if self.problems:
            raise ConfigError(self.problems)


class DataError(LoraFlowError):
    """The data set cannot be used; the message names the file, line or column."""

    headline = "Unusable data"


class ModelError(LoraFlowError):
    """The base model (or a merged one) cannot be used."""

    headline = "Unusable model"


class StorageError(LoraFlowError):
    """A disk is full, read-only, or lost a file."""

    headline = "Storage failed"


class CheckpointError(LoraFlowError):
    """A checkpoint or adapter is damaged, or belongs to something else."""

    headline = "Unusable checkpoint"


class ClusterError(LoraFlowError):
    """The cluster's API refused or could not be reached."""

    headline = "Cluster unavailable"


class ClusterForbidden(ClusterError):
    """The account lacks a permission."""

    headline = "Permission missing"


class JobError(LoraFlowError):
    """The training job ended badly. `failure_class` is a value of `failure_class.FailureClass`."""

    headline = "Training failed"

    def __init__(self, message: str, *, failure_class: str = "unknown", attempt: int = 0) -> None:
        super().__init__(message)
        self.failure_class = failure_class
        self.attempt = attempt


class JobPermanentError(JobError):
    """Trying again cannot help; remembered in the run directory."""

    headline = "Training failed for good"


class JobRetriesExhausted(JobError):
    """Too many attempts, or too many without a new complete checkpoint."""

    headline = "Training failed too often"


class JobTimeout(JobError):
    """A deadline passed."""

    headline = "Training took too long"


class JobBudgetSpent(JobError):
    """All that the run may use of the cluster is used; what was saved stays, and `resume` goes on from it."""

    headline = "The budget is used up"


class JobCancelled(JobError):
    """Asked to stop; what was saved stays, and `resume` goes on from it."""

    headline = "Training was stopped"
