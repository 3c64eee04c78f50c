"""Kill a small real training at random moments, many times, and hold what comes out against an uninterrupted run.

    python tests/soak/soak.py --kills 100 --seed 1 --processes 2        (`make soak ARGS="--kills 100"`)

Targets: a rank, torchrun, the keeper, the supervisor, all of them at once. Signals: SIGKILL, SIGTERM, SIGINT, SIGSTOP for a
while. A third of the moments are chosen inside a save or right behind it. Whoever is left goes on: the supervisor with its next
attempt, or a new supervisor as after `resume`. At the end the adapter must have the straight run's bits, no complete checkpoint
was lost or rewritten, no process is left, the steps in the events are consistent, and the account adds up to the wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from soak_training import prepare  # noqa: E402

from steps import checkpoints  # noqa: E402
from steps.events import EventTail  # noqa: E402
from steps.job.processes import find_marked  # noqa: E402
from steps.rundir import TrainDir, read_json  # noqa: E402

PROGRAM = Path(__file__).with_name("soak_training.py")
TARGETS = ("rank", "torchrun", "keeper", "supervisor", "everything")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)


@dataclass
class Soak:
    """One soaked training."""

    folder: Path
    inputs: Path
    processes: int
    steps: int
    dice: random.Random
    kills: list[str] = field(default_factory=list)
    seen: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Complete checkpoints seen: name → (step, bytes of COMPLETE.json)."""
    newest: int = 0
    begun_s: float = field(default_factory=time.time)
    supervisor: subprocess.Popen[bytes] | None = None
    account: dict[str, float] = field(default_factory=dict)

    @property
    def place(self) -> TrainDir:
        """The training's directory; there is one."""
        found = sorted(self.folder.glob("train-*"))
        return TrainDir(found[0] if found else self.folder / "train-none")

    def start(self) -> None:
        """A supervisor in a session of its own."""
        words = [sys.executable, str(PROGRAM), str(self.folder), str(self.inputs), str(self.processes), str(self.steps)]
        with (self.folder / "supervisor.log").open("ab") as log:
            self.supervisor = subprocess.Popen([*words, "resume"], stdout=log, stderr=log, start_new_session=True)

    def is_over(self) -> bool:
        """The supervisor ended with a result."""
        assert self.supervisor is not None
        return self.supervisor.poll() == 0

    def run(self, kills: int) -> None:
        """Kill until enough is killed or training is over, then let it end."""
        self.start()
        while len(self.kills) < kills and not self.is_over():
            self.wait_for_a_moment()
            if not self.is_over():
                self.strike()
            self.look()
            self.revive()
        while not self.is_over():
            time.sleep(0.2)
            self.look()
            self.revive()
        last = (self.folder / "supervisor.log").read_text().strip().splitlines()[-1]
        self.account = json.loads(last)["account"]

    def revive(self) -> None:
        """A dead supervisor is followed by another, as a person's `resume` or @retry would."""
        assert self.supervisor is not None
        if self.supervisor.poll() not in (None, 0):
            self.start()

    def wait_for_a_moment(self) -> None:
        """A random moment, or one inside a save or right behind it."""
        until_s = time.monotonic() + self.dice.uniform(0.2, 14)
        wants_save = self.dice.random() < 0.33
        while time.monotonic() < until_s and not self.is_over():
            if wants_save and any(
                not (path / checkpoints.COMPLETE).exists() for path in checkpoints.directories(self.place.checkpoints)
            ):
                time.sleep(self.dice.uniform(0, 0.02))
                return
            time.sleep(0.002 if wants_save else 0.05)
            if self.supervisor and self.supervisor.poll() is not None:
                return

    def strike(self) -> None:
        """One signal to one target."""
        target, number = self.dice.choice(TARGETS), self.dice.choice(SIGNALS)
        pids = self.pids_of(target)
        for pid in pids:
            send(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(self.dice.uniform(0.1, 2))
            for pid in pids:
                send(pid, signal.SIGCONT)
        if pids:
            self.kills.append(f"{target} {number.name}")

    def pids_of(self, target: str) -> list[int]:
        """Processes of the job by their role."""
        assert self.supervisor is not None
        ours = [self.supervisor.pid] if self.supervisor.poll() is None else []
        marked = sorted(find_marked(str(self.place.path)))
        words = {pid: command_of(pid) for pid in marked}
        parts = {"rank": "steps.job.rank", "torchrun": "torch.distributed.run", "keeper": "steps.job.keeper"}
        match target:
            case "supervisor":
                return ours
            case "everything":
                return [*ours, *marked]
            case _:
                found = [pid for pid in marked if parts[target] in words[pid]]
                return self.dice.sample(found, min(len(found), 1))

    def look(self) -> None:
        """Note every complete checkpoint; none may change, and the newest step never goes back."""
        newest = 0
        for path in checkpoints.directories(self.place.checkpoints):
            try:
                record = (path / checkpoints.COMPLETE).read_text()
                step = int(json.loads(record)["step"])
            except (OSError, ValueError):
                continue
            newest = max(newest, step)
            before = self.seen.setdefault(path.name, (step, record))
            assert before == (step, record), f"{path.name} was rewritten"
        assert newest >= self.newest or self.place.adapter.is_dir(), (
            f"step {self.newest} was complete and is gone: {newest}"
        )
        self.newest = max(newest, self.newest)


def send(pid: int, number: int) -> None:
    """A signal to a process that may have gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def command_of(pid: int) -> str:
    """Its command line, empty if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def steps_are_consistent(place: TrainDir) -> list[str]:
    """What is wrong with the step numbers of the events: each attempt goes on by one from where it says it started."""
    wrong = []
    for path in sorted(place.path.glob("attempts/*/events.jsonl")):
        expected: int | None = None
        for event in EventTail(path).read_new():
            if event.kind == "started":
                expected = event.step
            elif event.kind == "step":
                if expected is None or event.step != expected + 1:
                    wrong.append(f"{path.parent.name}: step {event.step} after {expected}")
                expected = event.step
    return wrong


def straight_run(folder: Path, inputs: Path, processes: int, steps: int) -> Path:
    """The uninterrupted run's adapter file."""
    words = [sys.executable, str(PROGRAM), str(folder), str(inputs), str(processes), str(steps)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return Path(json.loads(done.stdout.strip().splitlines()[-1])["adapter"], "adapter_model.safetensors")


def soak(folder: Path, *, kills: int, seed: int, processes: int, steps: int) -> dict[str, object]:
    """Run straight and soaked, and compare.

    Raises:
        AssertionError: something was lost, rewritten, left over or counted wrong.
    """
    straight, soaked = folder / "straight", folder / "soaked"
    for path in (straight, soaked):
        path.mkdir(parents=True)
    prepare(folder, processes, steps)
    expected = straight_run(straight, folder, processes, steps)
    run = Soak(soaked, folder, processes, steps, random.Random(seed))
    run.run(kills)
    wall_s = time.time() - run.begun_s
    assert (run.place.adapter / "adapter_model.safetensors").read_bytes() == expected.read_bytes(), "other bits"
    assert not find_marked(str(run.place.path)), "processes are left"
    assert not (wrong := steps_are_consistent(run.place)), wrong
    total_s = sum(float(run.account[key]) for key in run.account if key.endswith("_s") and key != "total_s")
    assert abs(total_s - float(run.account["total_s"])) <= 0.02 * float(run.account["total_s"]) + 0.1, run.account
    assert float(run.account["total_s"]) <= wall_s * 1.02 + 0.1, (run.account, wall_s)
    history = read_json(run.place.history)
    return {
        "kills": len(run.kills),
        "attempts": len(history["attempts"]),
        "identical": True,
        "wall_s": round(wall_s, 1),
        "account": run.account,
        "struck": {word: run.kills.count(word) for word in sorted(set(run.kills))},
    }


def main(argv: list[str] | None = None) -> int:
    """Soak and print what was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="0: enough for the kills")
    given = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    steps = given.steps or max(40, given.kills * 12)
    try:
        told = soak(folder, kills=given.kills, seed=given.seed, processes=given.processes, steps=steps)
    except AssertionError:
        print(f"kept for a look: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    print(json.dumps(told, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
