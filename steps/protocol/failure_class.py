"""The classes of failure, and everything that follows from a class: one row each. Pure.

How an exception becomes a class, and a class a record, is in `failure_record`; how an attempt's remains become one, in
`job.classify`. A new class is a member of `FailureClass` and a row of `MEANINGS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EXIT_OK = 0
EXIT_DIVERGED = 70
"""The loss is no number any more: the user's own failure, told apart for those who read exit codes."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a class of failure means for the worker, for the next attempt, and for a person."""

    advice: str
    """What a person can do, to be read after "What to do:"; `messages` adds how to go on."""
    exit_codes: tuple[int, ...]
    """The worker's exit code; further ones mean this class too. Empty: no worker runs that could leave one."""
    is_permanent: bool = False
    """Trying again gives the same: no further attempt."""
    is_permanent_at_same_step: bool = False
    """A second failure at the same step would only come again."""
    uses_up_retry: bool = True
    """False: the next attempt begins at once and is not counted, unless this comes twice in a row without progress."""
    blames_node: bool = False
    """The node of the first rank that failed may be at fault: it is avoided after a second such failure."""
    excludes_node: bool = False
    """The first failure is enough to leave the node out, as long as others have room."""
    is_symptom: bool = False
    """A healthy worker reports it too when another one has died: any other record speaks first."""
    hides_hardware: bool = False
    """A broken accelerator may be behind it: it ends as a time-out or a lost collective, often of a healthy peer first."""
    options: tuple[str, ...] = ()
    """Options that help, and that the same training may change: it is continued with one, since `resume` takes none."""
    other_training: tuple[str, ...] = ()
    """Options that help, and make another training: nothing of this one is used."""
    exceptions: tuple[str, ...] = ()
    """Names of exception types, or of bases of theirs, that are of this class. By name, so that torch need not be imported."""


class FailureClass(StrEnum):
    """What went wrong, as far as the next attempt is concerned."""

    USER = "user"
    """The training itself: its code, its data, its numbers."""
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

    @property
    def meaning(self) -> Meaning:
        """Its row."""
        return MEANINGS[self]

    @property
    def exit_code(self) -> int:
        """With which a worker of this class ends; the user's code for a class that no worker can tell of."""
        return next(iter(self.meaning.exit_codes or FailureClass.USER.meaning.exit_codes))

    @property
    def precedence(self) -> int:
        """Where several are named, the lowest is the cause and the others its symptoms: the order of the rows."""
        return list(MEANINGS).index(self)


MEANINGS: dict[FailureClass, Meaning] = {
    FailureClass.ACCELERATOR: Meaning(
        "look at the accelerator's health on the node named above",
        exit_codes=(76,),
        blames_node=True,
        excludes_node=True,
        exceptions=("AcceleratorError",),  # torch's, of a failed CUDA call
    ),
    FailureClass.NODE: Meaning(
        "look at the node named above before you go on",
        exit_codes=(79,),
        blames_node=True,
    ),
    FailureClass.OUT_OF_MEMORY: Meaning(
        "lower --micro-batch, or turn on --gradient-checkpointing",
        exit_codes=(71,),
        options=("--micro-batch 1", "--gradient-checkpointing on"),
        other_training=("--sequence-length",),
        is_permanent_at_same_step=True,
        exceptions=("OutOfMemoryError", "MemoryError"),  # torch's, for every accelerator; Python's
    ),
    FailureClass.IMAGE: Meaning(
        "check the image's name, its tag, and whether the nodes may pull it",
        exit_codes=(),
        is_permanent=True,
    ),
    FailureClass.CONFIG: Meaning(
        "correct the setting or the data that the message names; a corrected option is added to this",
        exit_codes=(65,),
        options=("",),
        is_permanent=True,
    ),
    FailureClass.USER: Meaning(
        "mend what the traceback names",
        exit_codes=(64, EXIT_DIVERGED),
        other_training=("--learning-rate",),
        is_permanent=True,
    ),
    FailureClass.STORAGE: Meaning(
        "look at the free space, the quota and the mount of the run directory",
        exit_codes=(66,),
    ),
    FailureClass.NETWORK: Meaning(
        "look at the network between the workers, and at the log of the rank that went first",
        exit_codes=(77,),
        blames_node=True,
        is_symptom=True,
        hides_hardware=True,
        exceptions=(
            *("DistBackendError", "DistNetworkError", "DistStoreError"),  # torch.distributed: NCCL and gloo
            *("ConnectionError", "TimeoutError", "gaierror"),  # gaierror: a name that cannot be resolved
        ),
    ),
    FailureClass.HANG: Meaning(
        "read the stacks in the evidence: they show where each rank stood",
        exit_codes=(78,),
        blames_node=True,
        is_symptom=True,
        hides_hardware=True,
    ),
    FailureClass.PREEMPTED: Meaning(
        "nothing is wrong with the training; go on when there is room",
        exit_codes=(143,),
        uses_up_retry=False,
        is_symptom=True,
    ),
    FailureClass.UNKNOWN: Meaning(
        "read the end of the log of the rank named above",
        exit_codes=(75,),
        blames_node=True,
        hides_hardware=True,
        exceptions=("ReplicaError",),  # copies of weights that differ: a failing core, or a fault of the libraries
    ),
}
"""A row per class, causes before symptoms."""

CLASS_OF_EXIT: dict[int, FailureClass] = {code: kind for kind, row in MEANINGS.items() for code in row.exit_codes}
"""What an exit code means when there is no failure record. 137 (SIGKILL), 139 and the rest say nothing: unknown."""
CLASS_OF_EXCEPTION: dict[str, FailureClass] = {name: kind for kind, row in MEANINGS.items() for name in row.exceptions}
"""By the name of the exception's type or of one of its bases."""
