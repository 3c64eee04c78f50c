"""What the supervisor costs while it waits: 24 simulated hours, 64 workers, a step every 5 seconds, a save every 100 steps.

    python -m bench supervisor [--hours 24] [--workers 64]

A fake clock and a scripted launcher; the event file grows for real. Tells CPU as a share of one core over the
simulated time, and memory held at the end against memory held after the first hour.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

from bench._report import report
from steps.job.job import Job
from steps.job.snapshot import JobSnapshot, Phase, WorkerState
from steps.job.supervise import Outside, supervise
from steps.protocol.events import Event
from steps.protocol.rundir import TrainDir
from steps.settings.config import Settings

STEP_S = 5.0
SAVE_EVERY = 100


class Ended(Exception):
    """The simulated day is over."""


class Day:
    """Clock, launcher and worker at once."""

    def __init__(self, job: Job, hours: float) -> None:
        self._job = job
        self._until_s = hours * 3600
        self._step = 0
        self._looks = 0
        self._workers = tuple(WorkerState(rank, f"pod-{rank}", f"node-{rank}") for rank in range(job.world))
        self.now_s = 0.0
        self._hour = 0
        self.memory = [0, 0]
        """Bytes held after the first hour, and now."""

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        hour = int(self.now_s // 3600)
        if hour > self._hour:
            self.memory[hour > 1] = tracemalloc.get_traced_memory()[0]
            self._hour = hour
        if self.now_s > self._until_s:
            raise Ended

    def create(self, job: Job, attempt: int, *, exclude_nodes: Sequence[str] = ()) -> None:
        job.directory.attempt(attempt).mkdir(parents=True, exist_ok=True)
        self._file = job.directory.events(attempt).open("a", buffering=1)
        self._write("started", 0)
        self._write("model_loaded", 0)

    def read(self, job: Job, attempt: int) -> JobSnapshot:
        """A fresh snapshot each time, as a real launcher makes it; new events have been written meanwhile."""
        self._looks += 1
        while self._step * STEP_S < self.now_s:
            self._step += 1
            self._write("step", self._step, of=10**9, loss=1.5, lr=1e-4, tokens=10**6, tokens_per_s=1e4, seconds=STEP_S)
            if self._step % SAVE_EVERY == 0:
                self._write("checkpoint_begin", self._step)
                self._write("checkpoint", self._step, seconds=1.0)
        return JobSnapshot(
            Phase.RUNNING, tuple(WorkerState(w.rank, w.name, w.node) for w in self._workers), remaining=1
        )

    def delete(self, job: Job, attempt: int, *, grace_s: float) -> None:
        raise AssertionError("nothing is deleted on this day")

    def logs(self, job: Job, attempt: int, rank: int, *, lines: int = 400) -> str:
        return ""

    def _write(self, kind: str, step: int, **data: object) -> None:
        self._file.write(Event(kind, self.now_s, 1, step, dict(data)).to_line() + "\n")  # type: ignore[arg-type]


def live(hours: float, workers: int, *, trace: bool) -> tuple[float, Day]:
    """(CPU seconds, the day) of one simulated watch."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job("none", {}, TrainDir(Path(folder)), "bench", 10**9, workers)
        day = Day(job, hours)
        if trace:
            tracemalloc.start()
        begun_s = time.process_time()
        with contextlib.suppress(Ended):
            supervise(job, day, Settings(), Outside(clock=day.clock, wall=day.clock, sleep=day.sleep))
        spent_s = time.process_time() - begun_s
        if trace:
            tracemalloc.stop()
        return spent_s, day


def main(argv: list[str]) -> int:
    """Print CPU share and memory growth."""
    parser = argparse.ArgumentParser(prog="python -m bench supervisor")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--workers", type=int, default=64)
    options = parser.parse_args(argv)
    spent_s, _ = live(options.hours, options.workers, trace=False)
    share = spent_s / (options.hours * 3600)
    _, day = live(options.hours, options.workers, trace=True)
    first, last = day.memory
    what = f"supervisor, {options.workers} workers, {options.hours:g} simulated hours"
    report(f"{what}: CPU", 100 * share, unit="% of a core", goal="ours < 0.1")
    report(f"{what}: memory held, against hour 1", last / 1024, first / 1024, unit="KiB", goal="ratio <= 1.1")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
