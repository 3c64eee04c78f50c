"""Our own overhead around a job: the call → the first worker runs; the last worker's exit → the result is there.

    python -m bench overhead [--times 5]

`theirs` is torchrun itself, started by hand for the same worker, in turn with ours: most of both is torchrun importing torch, and
what is ours is the difference. Medians of seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench._report import report
from steps.job.job import Job
from steps.job.local_launcher import LocalLauncher
from steps.job.supervise import supervise
from steps.protocol.rundir import TrainDir
from steps.settings.config import Settings

ROOT = Path(__file__).resolve().parents[1]
Times = tuple[float, float]
"""Seconds before the worker began, seconds after it ended."""


def ours(folder: Path) -> Times:
    """The job under the supervisor."""
    job = Job("bench._worker", {}, TrainDir(folder / "train-bench"), "bench", 1)
    begun_s = time.time()
    supervise(job, LocalLauncher(), Settings())
    return _around(begun_s, job.directory.path)


def theirs(folder: Path) -> Times:
    """The same worker under a plain torchrun."""
    spec = folder / "train-bench" / "spec.json"
    spec.parent.mkdir()
    spec.write_text("{}")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=1",
        "-m",
        "bench._worker",
    ]
    begun_s = time.time()
    subprocess.run(
        [*command, str(spec), "--attempt", "1"],
        check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return _around(begun_s, spec.parent)


def _around(begun_s: float, folder: Path) -> Times:
    now_s = time.time()
    worker_begun_s, worker_ended_s = json.loads((folder / "times.json").read_text())
    return worker_begun_s - begun_s, now_s - worker_ended_s


def main(argv: list[str]) -> int:
    """Measure both in turn and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m bench overhead")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args(argv)
    found: dict[str, list[Times]] = {"ours": [], "theirs": []}
    for _ in range(options.times):
        for name, measure in (("ours", ours), ("theirs", theirs)):
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(measure(Path(folder)))
    for index, what in enumerate(("job: call to first worker running", "job: last worker's exit to result")):
        mine, other = (statistics.median(times[index] for times in found[name]) for name in ("ours", "theirs"))
        report(what, mine, other, unit="s", goal="difference < 1")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
