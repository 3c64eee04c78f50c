"""Two frozen values: `Job`, what is to be run, and `Outside`, what the supervisor uses of the world around it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from steps.job.agent.in_use import now_on
from steps.job.agent.processes import boot_id
from steps.protocol.events import Event
from steps.protocol.rundir import TrainDir


@dataclass(frozen=True, slots=True)
class Job:
    """One module on some workers, with all that identifies it."""

    module: str
    """Run as `python -m <module> <directory>/spec.json --attempt N` on every rank."""
    spec: Mapping[str, Any]
    """What the supervisor writes to spec.json; plain JSON values, no secret."""
    directory: TrainDir
    identity: str
    """Digest of what the job computes; names the directory."""
    total_steps: int
    processes: int = 1
    """Workers on each node."""
    nodes: int = 1
    threads_per_process: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the workers' environment; never written to disk."""
    node_choices: tuple[int, ...] = ()
    """Numbers of nodes to go on with when not all could start, the largest first; empty: `nodes` alone."""
    label: str = "training"
    """What people read: model and data set."""
    step: str = ""
    """Names the job where a step runs several; empty: by the step alone."""
    wrapper: str = ""
    """Module that gets torchrun's command line as its arguments, and runs it; empty: torchrun runs by itself."""
    needs_torchrun: bool = False
    """Even a single process is started by torchrun: some runtimes read its environment."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What a person who looks at the job on a cluster should read: annotations."""

    @property
    def world(self) -> int:
        """Workers in all."""
        return self.processes * self.nodes

    @property
    def spec_digest(self) -> str:
        """Of the module, its spec and its layout: two jobs with the same digest are the same program on the same workers."""
        shape = [self.module, dict(self.spec), self.processes, self.nodes, self.threads_per_process]
        shape += [self.wrapper] if self.wrapper else []
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


Turn = Literal["attempt_began", "queued", "admitted", "attempt_ended", "gave_up", "finished"]


@dataclass(frozen=True, slots=True)
class Change:
    """A turn in a training's story, told by the supervisor that acts: once each, but for `attempt_began` after an adoption."""

    kind: Turn
    time_s: float
    """Unix time on the supervisor's clock."""
    attempt: int
    data: Mapping[str, Any] = field(default_factory=dict)
    """attempt_began: nodes, is_adopted. attempt_ended: the attempt as `history` keeps it. gave_up: kind, failure_class, message.
    finished: step, account. Plain JSON values."""


@dataclass(frozen=True, slots=True)
class Outside:
    """Time, and who is told. Handed in, so that a test runs a day in a second."""

    observe: Callable[[Event], None] = lambda event: None
    """Gets every event of the workers."""
    notice: Callable[[str], None] = lambda sentence: None
    """Gets a sentence about each decision."""
    tell: Callable[[Change], None] = lambda change: None
    """Gets every turn of the story. Must return at once, and raise nothing."""
    clock: Callable[[], float] = time.monotonic
    """Monotonic seconds: deadlines and delays are measured by it."""
    wall: Callable[[], float] = time.time
    """Unix time, for what people read."""
    sleep: Callable[[float], None] = time.sleep
    boot: Callable[[], str] = boot_id
    """Changes with every start of the machine: `clock` can be compared within one."""
    disk: Callable[[Path], float] = now_on
    """Unix time by the file system's clock, where a folder is: the same for all machines, unless it takes theirs."""

    def steadied(self) -> Outside:
        """With Unix time as it is now, moved on by the monotonic clock: a wall clock that is set makes no long attempt."""
        offset_s = self.wall() - self.clock()
        return replace(self, wall=lambda: self.clock() + offset_s)
