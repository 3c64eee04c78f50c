"""A worker without torch that plays a training, for tests of the job room: `spec["play"]` says how it goes.

Keys: steps, step_s (later_step_s from the second attempt on), save_every, and by attempt (as text, or "*") under "acts": {"rank",
"step", "act"}; clock_shift_s (of its events), deafness (ignores SIGTERM from the start), ballast_kib (in each checkpoint),
together (no rank goes on without the others, as with a collective; one that is to stop waits `meet_s` for them). An error
leaves a failure record, as the real worker does.
Acts: crash, exit <code>, record <class> <code>, hang, deaf (hangs and ignores SIGTERM), no_result, eat (all memory),
abort <a word of the Neuron runtime>, talk <MiB> (into its log, then hangs), half (stays inside its next save for ever).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from steps.protocol.checkpoints import checkpoint_path, commit, newest_step, register_writer
from steps.protocol.events import EventWriter
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import FailureRecord, record_of, write_record
from steps.protocol.rundir import TrainDir

MEET_S = 3.0
"""A rank that is to stop waits for the others for so long (`meet_s`)."""
stopping = False


def on_term(*_: object) -> None:
    global stopping
    stopping = True


def sleep_for_ever() -> None:
    while True:
        time.sleep(1)


def act(what: str, folder: Path, rank: int, step: int) -> None:
    if what.startswith("abort"):
        print(f"ERROR NRT:nrt_infodump Failure: {what.split()[1]} in nrt_execute()", flush=True)
        os.abort()
    if what == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if what.startswith("exit"):
        sys.exit(int(what.split()[1]))
    if what.startswith("record"):
        _, failure_class, code = what.split()
        write_record(
            folder,
            FailureRecord(
                failure_class,
                "it broke",
                "RuntimeError",
                rank,
                "here",
                step,
                int(code),
                time.time(),
                "line of the trace",
            ),
        )
        sys.exit(int(code))
    if what.startswith("talk"):
        for _ in range(int(what.split()[1]) * 1024):
            print("-" * 1023)
        sleep_for_ever()
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleep_for_ever()
    if what == "hang":
        sleep_for_ever()
    if what == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(os.urandom(1024)) * 2**14)


def meet(folder: Path, rank: int, world: int, step: int, patience_s: float) -> bool:
    """Wait for the other ranks; False if one of them stops, or if this one is to stop before they came."""
    beside = folder / f".at-{rank}"
    beside.write_text(str(step))
    beside.rename(folder / f"at-{rank}")
    since_s = None
    while not all(at(folder / f"at-{other}") >= step for other in range(world)):
        since_s = since_s or (time.monotonic() if stopping else None)
        is_alone = since_s is not None and time.monotonic() - since_s > patience_s
        if is_alone or (folder / "stopping").exists():
            return False
        time.sleep(0.02)
    return True


def at(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0


def main() -> int:
    signal.signal(signal.SIGTERM, on_term)
    spec_path, attempt = Path(sys.argv[1]), int(sys.argv[3])
    play = json.loads(spec_path.read_text())["play"]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    directory = TrainDir(spec_path.parent)
    folder = directory.attempt(attempt)
    todo = play.get("acts", {}).get(str(attempt)) or play.get("acts", {}).get("*", {})
    if play.get("deafness"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for left in ("stopping", f"at-{rank}"):  # by a pod of this attempt that was made anew
        (folder / left).unlink(missing_ok=True)
    first = newest_step(directory.checkpoints)
    events = writer = None
    if rank == 0:
        writer = register_writer(directory.writers, attempt)
        shift_s = play.get("clock_shift_s", 0.0)
        events = EventWriter(directory.events(attempt), attempt=attempt, clock=lambda: time.time() + shift_s)
        events.emit(
            "started", first, of=play["steps"], world=world, processes=world, pid=os.getpid(), claim=str(writer)
        )
        events.emit("model_loaded", first, seconds=0.0)
    step_s = play["step_s"] if attempt == 1 else play.get("later_step_s", play["step_s"])
    for step in range(first + 1, play["steps"] + 1):
        time.sleep(step_s)
        if todo.get("rank", 0) == rank and todo.get("step") == step:
            act(todo["act"], folder, rank, step - 1)
        met = meet(folder, rank, world, step, play.get("meet_s", MEET_S)) if play.get("together") else True
        if not met and not (folder / "stopping").exists():
            return FailureClass.PREEMPTED.exit_code  # the others are gone: nothing can be saved
        if not met:
            step -= 1
        elif stopping and play.get("together"):
            (folder / "stopping").touch()
        leaving = stopping or not met
        if events and writer:
            if met:
                events.emit(
                    "first_step" if step == first + 1 else "step", step, of=play["steps"], loss=1 / step, seconds=step_s
                )
            if step % play.get("save_every", 2) == 0 or leaving:
                events.emit("checkpoint_begin", step)
                path = checkpoint_path(directory.checkpoints, step, writer)
                path.mkdir(parents=True, exist_ok=True)
                (path / "state").write_text(str(step) + " " * 1024 * int(play.get("ballast_kib", 0)))
                if todo.get("act") == "half" and step >= todo["step"]:
                    sleep_for_ever()
                commit(path, step=step, writer=writer, identity="play", layout={})
                events.emit("checkpoint", step, seconds=0.0)
        if leaving:
            if events:
                events.emit("stopping", step, reason="SIGTERM")
            return FailureClass.PREEMPTED.exit_code
    if events and writer and todo.get("act") != "no_result":
        result = directory.writers / str(writer) / "result"
        result.mkdir()
        (result / "adapter.txt").write_text("learned")
        told = {"bytes": 7, "sha256": hashlib.sha256(b"learned").hexdigest()}
        files = {"adapter.txt": told}
        events.emit("finished", play["steps"], result=str(result.relative_to(directory.path)), files=files)
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:
        rank = int(os.environ["RANK"])
        record = record_of(error, rank=rank, node=os.uname().nodename, step=0, time_s=time.time())
        write_record(TrainDir(Path(sys.argv[1]).parent).attempt(int(sys.argv[3])), record)
        raise SystemExit(record.exit_code) from error
    sys.exit(code)
