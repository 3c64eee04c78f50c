"""Fakes for tests of the job room: a clock that only sleep moves, and a launcher that follows a script."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.job.job import Job
from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from steps.protocol.checkpoints import Writer, checkpoint_path, commit, newest_step
from steps.protocol.events import EventWriter
from steps.protocol.failure_record import FailureRecord, write_record
from steps.protocol.rundir import TrainDir


@dataclass
class FakeClock:
    """Monotonic and wall clock at once."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def make_job(folder: Path, *, processes: int = 1, total_steps: int = 10, spec: dict[str, Any] | None = None) -> Job:
    directory = TrainDir(folder / "train-play")
    return Job("play_worker", spec or {}, directory, "play", total_steps, processes, label="tiny-orders")


@dataclass
class Attempt:
    """What an attempt of the scripted launcher can do."""

    job: Job
    number: int
    clock: FakeClock
    snapshot: JobSnapshot = field(default_factory=lambda: JobSnapshot(Phase.RUNNING, remaining=1))
    events: EventWriter = field(init=False)
    done: int = 0
    """Steps done before it began."""

    def __post_init__(self) -> None:
        quiet = open("/dev/null", "w")  # noqa: SIM115
        path = self.job.directory.events(self.number)
        self.events = EventWriter(path, attempt=self.number, stream=quiet, clock=self.clock)

    def start(self, step: int | None = None) -> None:
        """Begin where a worker would, unless a step is given."""
        step = newest_step(self.job.directory.checkpoints) if step is None else step
        self.done = step
        self.events.emit("started", step, of=self.job.total_steps, world=self.job.processes)
        self.events.emit("model_loaded", step)

    def train(self, first: int, last: int) -> None:
        for step in range(max(first, self.done + 1), last + 1):
            self.events.emit("step", step, seconds=1.0)

    def save(self, step: int) -> None:
        path = checkpoint_path(self.job.directory.checkpoints, step, Writer(self.number, 1))
        path.mkdir(parents=True)
        (path / "state").write_text("x")
        commit(path, step=step, writer=Writer(self.number, 1), identity="play", layout={})
        self.events.emit("checkpoint_begin", step)
        self.events.emit("checkpoint", step)

    def finish(self, *, content: bytes = b"learned", told: bytes = b"learned") -> None:
        result = self.job.directory.writers / f"{self.number:03d}-01" / "result"
        result.mkdir(parents=True, exist_ok=True)
        (result / "adapter").write_bytes(content)
        files = {"adapter": {"bytes": len(told), "sha256": hashlib.sha256(told).hexdigest()}}
        name = str(result.relative_to(self.job.directory.path))
        self.events.emit("finished", self.job.total_steps, result=name, files=files)
        self.end(0)

    def end(self, exit_code: int, *, reason: Reason = Reason.NONE) -> None:
        phase = Phase.SUCCEEDED if exit_code == 0 else Phase.FAILED
        worker = WorkerState(0, "pid 1", exit_code=exit_code, reason=reason, finished_s=self.clock())
        self.snapshot = JobSnapshot(phase, (worker,))

    def record(self, failure_class: str, exit_code: int, *, step: int = 0) -> None:
        told = FailureRecord(
            failure_class, "it broke", "RuntimeError", 0, "here", step, exit_code, self.clock(), "Traceback\n  line 7"
        )
        write_record(self.job.directory.attempt(self.number), told)
        self.end(exit_code)


Script = Callable[[Attempt, int], None]
"""Called at every look at an attempt, with the number of the look, from 0."""


@dataclass
class ScriptedLauncher:
    """A launcher whose attempt N follows `scripts[N - 1]`."""

    clock: FakeClock
    scripts: Sequence[Script]
    attempts: dict[int, Attempt] = field(default_factory=dict)
    looks: dict[int, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    deaf: bool = False
    """Does not end on a deletion with grace."""

    def create(
        self, job: Job, attempt: int, *, avoid_nodes: Sequence[str] = (), exclude_nodes: Sequence[str] = ()
    ) -> None:
        preferred = f" rather without {','.join(avoid_nodes)}" if avoid_nodes else ""
        required = f" without {','.join(exclude_nodes)}" if exclude_nodes else ""
        self.calls.append(f"create {attempt}{required}{preferred}")
        self.attempts[attempt] = Attempt(job, attempt, self.clock)

    def read(self, job: Job, attempt: int) -> JobSnapshot:
        found = self.attempts.get(attempt)
        if found is None:
            return JobSnapshot(Phase.GONE)
        look = self.looks.get(attempt, 0)
        self.looks[attempt] = look + 1
        if not found.snapshot.is_over or found.snapshot.names_another or found.snapshot.is_refused:
            self.scripts[attempt - 1](found, look)
        return found.snapshot

    def delete(self, job: Job, attempt: int, *, grace_s: float) -> None:
        has_evidence = (job.directory.attempt(attempt) / "evidence" / "snapshot.json").is_file()
        self.calls.append(f"delete {attempt} {grace_s:g} {'after evidence' if has_evidence else 'without evidence'}")
        if not (self.deaf and grace_s > 0):
            self.attempts[attempt].end(143, reason=Reason.STOPPED)

    def logs(self, job: Job, attempt: int, rank: int, *, lines: int = 400) -> str:
        return f"log of rank {rank}"

    def evidence(self, job: Job, attempt: int) -> dict[str, str]:
        return {"platform.txt": f"attempt {attempt}"}
