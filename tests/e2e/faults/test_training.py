"""Faults that only the real training knows: a loss that runs away, a file system that is full. The rest is played."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.faults.conftest import Expect, MakeTrial
from tests.e2e.faults.fault_harness import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]

TINY = {
    "model": "tiny",
    "max_steps": 10,
    "max_rows": 120,
    "global_batch": 4,
    "micro_batch": 1,
    "precision": "fp32",
    "lora_dropout": 0.1,
}
PATIENT = {
    "deadlines": {"startup_s": 600, "model_load_s": 600, "first_step_s": 600, "step_gap_s": 300},
    "cluster": {"memory_gib": 2},
}


@contextlib.contextmanager
def full(folder: Path, kib: int) -> Iterator[None]:
    """A tiny file system over `folder`, as both nodes see it (they have mount namespaces of their own, but run here)."""
    kubelets = [process.pid for process in psutil.process_iter(["name"]) if process.info["name"] == "kubelet"]
    if not kubelets or os.geteuid():
        pytest.skip("the nodes do not run on this machine, so nothing can be mounted there")
    folder.mkdir(parents=True, exist_ok=True)
    # -p as well: umount asks /proc, which is that of the node.
    enter = [["nsenter", "-t", str(pid), "-m", "-p"] for pid in kubelets]
    for one in enter:
        subprocess.run([*one, "mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=1777", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        for one in enter:
            subprocess.run([*one, "umount", "-l", str(folder)], check=True)


def test_a_loss_that_runs_away_stops_at_once_and_names_step_and_rate(trial: MakeTrial, expect: Expect) -> None:
    training = trial("nan", settings=PATIENT)
    training.training = {**TINY, "lora_alpha": 1e30}  # the first gradient overflows
    training.start()
    reads = r"the (loss|gradient norm) is (nan|inf) at step \d+ of 10, learning rate"
    expect("the loss becomes NaN (real training)", training, classes=["user"], error="JobPermanentError", reads=reads)


def test_a_worker_of_the_real_training_is_killed(trial: MakeTrial, expect: Expect) -> None:
    training = trial("real", settings=PATIENT)
    training.training = {**TINY, "max_steps": 300}
    training.start()
    eventually("it trains", lambda: any(event.step >= 3 for event in training.events(1)), limit_s=600)
    training.kill_rank(1)
    expect("worker kill -9 (real training)", training, classes=["unknown"], reads="killed by SIGKILL", lost_at_most=60)


def test_a_full_file_system_is_storages_failure_and_resume_goes_on(trial: MakeTrial, expect: Expect) -> None:
    settings = {"retry": {"max_without_progress": 2}}
    training = trial("full", nodes=1, settings=settings, ballast_kib=256)
    training.folder.mkdir()
    training.folder.chmod(0o777)
    os.umask(0)
    with full(training.folder / "train-play" / "checkpoints", 64):
        training.start()
        said = "No space left on device"
        expect(
            "a full /fsx",
            training,
            classes=["storage", "storage"],
            error="JobRetriesExhausted",
            reads=said,
            lost_at_most=60,
        )
    training.start(resume=True)
    expect(
        "… and resumed after it was cleaned",
        training,
        classes=["storage", "storage"],
        reads="PyTorchJob .*-a3: 1 node",
        lost_at_most=60,
    )
