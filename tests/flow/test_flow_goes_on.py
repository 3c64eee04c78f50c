"""Kill −9 at the worst places; `resume` goes on from the last complete checkpoint and ends with the same bits."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from steps.plain_text import counted
from tests.flow.flow_harness import (
    Place,
    checkpoint_after,
    kill_and_resume,
    processes_of,
    run_id_of,
    steps_seen,
    wait_until,
)


def workers_of(place: Place) -> list[psutil.Process]:
    return [process for process in processes_of(place.folder) if "steps.train.worker" in " ".join(process.cmdline())]


def uninterrupted(place: Place, processes: int) -> bytes:
    """The adapter of the same training from the first step to the last, by its worker alone."""
    spec = json.loads(next(place.folder.glob("runs/LoraFlow/*/train-*/spec.json")).read_text())
    folder = place.folder / "uninterrupted"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({**spec, "directory": str(folder)}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = place.call([*torchrun, "-m", "steps.train.worker", str(folder / "spec.json"), "--attempt", "1"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return (folder / "writers" / "001-01" / "result" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_flow_of_two_processes_killed_whole_goes_on_with_resume_and_ends_with_equal_bits(place: Place) -> None:
    place.write_config()
    assert kill_and_resume(place, "--processes", "2") == uninterrupted(place, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_is_continued_on_another_number_of_processes_with_the_same_bits(
    place: Place, before: int, after: int
) -> None:
    place.write_config()
    log = place.folder / "log.txt"
    flow = place.start(place.run_words("--processes", str(before)), log)
    wait_until(lambda: checkpoint_after(place, 3), timeout_s=200, what="a checkpoint")
    for process in (psutil.Process(flow.pid), *processes_of(place.folder)):
        process.kill()
    flow.wait()
    killed = run_id_of(log.read_text())
    assert steps_seen(place) < 12, "it was killed too late to show anything"

    done = place.call(place.run_words("--processes", str(after), "--continue-from", killed))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"continuing {place.run_directory(killed)}" in done.stdout
    assert f"workers started ({counted(after, 'process', 'processes')}), from the checkpoint of step" in done.stdout
    assert ", saved on another layout" in done.stdout
    adapter = place.artifact(re.findall(r"run-id (\d+)", done.stdout)[-1], "train", "adapter")
    assert Path(adapter["path"]).is_relative_to(place.run_directory(killed))
    assert Path(adapter["path"], "adapter_model.safetensors").read_bytes() == uninterrupted(place, before)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_of_two_launchers_at_once_the_second_says_whom_it_follows_and_both_bring_one_adapter(place: Place) -> None:
    place.write_config()
    log, again = place.folder / "log.txt", place.folder / "again.txt"
    first = place.start(place.run_words("--max-steps", "200"), log)
    wait_until(lambda: checkpoint_after(place, 3), timeout_s=200, what="a checkpoint")
    second = place.start(place.command("resume", "--origin-run-id", run_id_of(log.read_text())), again)
    wait_until(lambda: "already watches over this training" in again.read_text(), timeout_s=90, what="the following")
    assert "following it, and taking over when it ends" in again.read_text()
    assert (first.wait(timeout=300), second.wait(timeout=300)) == (0, 0), again.read_text()[-3000:]
    assert {path.parent.name for path in place.folder.glob("runs/**/events.jsonl")} == {"001"}, "one attempt in all"
    runs = [run_id_of(path.read_text()) for path in (log, again)]
    paths = {place.artifact(run, "train", "adapter")["path"] for run in runs}
    assert len(paths) == 1
    assert not processes_of(place.folder / "runs")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_launcher_killed_alone_is_followed_by_one_that_adopts_the_workers(place: Place) -> None:
    place.write_config()
    log = place.folder / "log.txt"
    flow = place.start(place.run_words("--max-steps", "60"), log)
    wait_until(lambda: checkpoint_after(place, 3), timeout_s=120, what="a checkpoint")
    before = {process.pid for process in workers_of(place)}
    os.killpg(flow.pid, signal.SIGKILL)
    flow.wait()
    assert {process.pid for process in workers_of(place)} == before, "the workers live on without their launcher"

    again = place.start(
        place.command("resume", "--origin-run-id", run_id_of(log.read_text())), place.folder / "again.txt"
    )
    wait_until(
        lambda: "is still running" in (place.folder / "again.txt").read_text(), timeout_s=60, what="the adoption"
    )
    assert {process.pid for process in workers_of(place)} <= before
    assert again.wait(timeout=180) == 0, (place.folder / "again.txt").read_text()[-3000:]
    attempts = {path.parent.name for path in place.folder.glob("runs/**/events.jsonl")}
    assert attempts == {"001"}, "no second attempt was started"
    assert not processes_of(place.folder / "runs")
