"""What the supervisor asks of a launcher. `local` satisfies it here, `kube_launcher` on a cluster; neither is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from steps.job.job import Job
from steps.job.snapshot import JobSnapshot


class Launcher(Protocol):
    """Starts, looks at and ends attempts of a job. No method waits for a worker."""

    def create(self, job: Job, attempt: int, *, exclude_nodes: Sequence[str] = ()) -> None:
        """Start an attempt; nothing happens if it runs already.

        Raises:
            StorageError, ClusterError: it cannot be started.
        """

    def read(self, job: Job, attempt: int) -> JobSnapshot:
        """How the attempt is."""
        ...

    def delete(self, job: Job, attempt: int, *, grace_s: float) -> None:
        """Ask that its workers save and stop, and that what is left after `grace_s` is killed; 0 kills at once."""

    def logs(self, job: Job, attempt: int, rank: int, *, lines: int = 400) -> str:
        """The end of a rank's log; empty if there is none."""
        ...

    def evidence(self, job: Job, attempt: int) -> Mapping[str, str]:
        """What only this platform knows about an attempt, as file name → text."""
        ...
