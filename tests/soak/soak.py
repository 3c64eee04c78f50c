"""Kill a small real training at random moments, many times, and hold what comes out against an uninterrupted run.

    python tests/soak/soak.py --kills 100 --seed 1 --processes 2        (`make soak ARGS="--kills 100"`)
    python tests/soak/soak.py --flow --kills 10                         the whole flow: its process group, then `resume`; and
                                                                        each of prepare, merge and evaluate, --stage-kills times

Targets: a rank, torchrun, the keeper, the supervisor, all of them at once. Signals: SIGKILL, SIGTERM, SIGINT, SIGSTOP for a
while, now and then for longer than a step may take. A third of the moments lie inside a save or right behind it, a fifth
before the first step. Whoever is left goes on: the supervisor with its next attempt, or a new supervisor as after `resume`.
At the end the adapter must have the straight run's bits, no complete checkpoint was lost or rewritten, no process is left, the
steps in the events are consistent, and the account adds up to the wall time. What is checked is in `soak_checks`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from steps.job.agent.processes import find_marked, send
from steps.protocol import checkpoints
from steps.protocol.rundir import TrainDir, read_json
from tests.shared.clean_environment import hear_interrupts
from tests.soak.soak_checks import Kill, Watched, count, newest_attempt, recovery_told, steps_are_consistent
from tests.soak.soak_training import STEP_GAP_S, prepare

PROGRAM = Path(__file__).with_name("soak_training.py")
ADAPTER = "adapter_model.safetensors"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
ROLES = {"rank": "steps.job.agent.rank", "torchrun": "torch.distributed.run", "keeper": "steps.job.agent.agent"}
"""A word in the command line of each of the job's processes."""
STEPS_PER_KILL = 8
"""Each kill comes at the latest when its share of the steps is done."""
LIMIT_PER_KILL_S = 180.0


@dataclass
class Soak:
    """One soaked training."""

    folder: Path
    inputs: Path
    processes: int
    steps: int
    dice: random.Random
    say: Callable[[str], None] = lambda text: None
    targets: tuple[str, ...] = ("rank", "torchrun", "keeper", "supervisor", "everything")
    kills: list[Kill] = field(default_factory=list)
    watched: Watched = field(default_factory=Watched)
    begun_s: float = field(default_factory=time.time)
    started: subprocess.Popen[bytes] | None = None
    outside_s: float = 5.0
    """Before the first attempt is made and after the result is there: no account can hold that."""

    @property
    def place(self) -> TrainDir:
        """The training's directory; there is one."""
        found = sorted(self.folder.glob("train-*"))
        return TrainDir(found[0] if found else self.folder / "train-none")

    @property
    def log(self) -> Path:
        """What the supervisors said."""
        return self.folder / "supervisor.log"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Whoever is in charge now: alive, or the last one."""
        assert self.started is not None
        return self.started

    def command(self) -> list[str]:
        """What to start when nobody is in charge."""
        words = [str(PROGRAM), str(self.folder), str(self.inputs), str(self.processes), str(self.steps)]
        return [sys.executable, *words, "resume"]

    def start(self) -> None:
        """Somebody in charge, in a session of its own."""
        with self.log.open("ab") as log:
            self.started = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)

    def is_over(self) -> bool:
        """The last one in charge ended with a result."""
        return self.process.poll() == 0

    def run(self, kills: int) -> None:
        """Kill until enough is killed, then let it end."""
        self.start()
        self.strike_training(kills)
        self.let_end()
        assert len(self.kills) >= kills, f"it was over after {len(self.kills)} kills: give more --steps"

    def strike_training(self, kills: int) -> None:
        """Strike so often while it trains, each time before its share of the steps is done."""
        before, limit_s = len(self.kills), time.monotonic() + (kills + 5) * LIMIT_PER_KILL_S
        while (done := len(self.kills) - before) < kills and not self.is_over():
            assert time.monotonic() < limit_s, f"still not over after {len(self.kills)} kills: {self.place.path}"
            share, next_share = (self.steps * (done + more) // (kills + 1) for more in (1, 2))
            self.wait_for_a_moment(before=share)
            self.strike(before=next_share)
            self.look_after()

    def let_end(self) -> None:
        """Strike no more."""
        limit_s = time.monotonic() + 5 * LIMIT_PER_KILL_S
        while not self.is_over():
            assert time.monotonic() < limit_s, f"it does not end: {self.place.path}"
            time.sleep(0.5)
            self.look_after()

    def look_after(self) -> None:
        """Nothing may have been lost; whoever is in charge is followed by another, as by a person's `resume` or @retry."""
        self.watched.look(self.place)
        if self.process.poll() not in (None, 0):
            self.start()

    def wait_for_a_moment(self, before: int) -> None:
        """Anywhere before the first step; inside a save or right behind it; or while it trains.

        At the latest behind the checkpoint of step `before`: so training cannot end before enough was struck.
        """
        kind, until_s = self.dice.random(), time.monotonic() + 90
        wanted = self.is_saving if kind < 0.53 else self.is_training
        if kind < 0.2:
            until_s = time.monotonic() + self.dice.uniform(0.1, 9)
        while time.monotonic() < until_s and self.process.poll() is None and self.watched.newest < before:
            if kind >= 0.2 and wanted():
                break
            time.sleep(0.002 if wanted == self.is_saving else 0.1)
            self.watched.look(self.place)
        if kind >= 0.2:
            self.pause(self.dice.uniform(0, 0.02) if wanted == self.is_saving else self.dice.uniform(0, 4), before)

    def pause(self, seconds: float, before: int) -> None:
        """Sleep, but not beyond the checkpoint of step `before`."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0 and self.watched.newest < before:
            time.sleep(min(0.05, left_s))
            self.watched.look(self.place)

    def is_saving(self) -> bool:
        """The newest checkpoint has no record yet."""
        newest = checkpoints.directories(self.place.checkpoints)[:1]
        return any(not (path / checkpoints.COMPLETE).exists() for path in newest)

    def is_training(self) -> bool:
        """The newest attempt has done a step."""
        path = self.place.events(newest_attempt(self.place))
        return path.is_file() and '"first_step"' in path.read_text()

    def strike(self, before: int) -> None:
        """One signal to one target; who is stopped sleeps no longer than until the others have saved step `before`."""
        target, number = self.dice.choice(self.targets), self.dice.choice(SIGNALS)
        pids = self.pids_of(target)
        struck = Kill(time.time(), target, number.name, newest_attempt(self.place), self.watched.newest)
        for pid in pids:
            send(pid, number)
        if number == signal.SIGSTOP:
            self.pause(STEP_GAP_S + 8 if self.dice.random() < 0.1 else self.dice.uniform(0.1, 2), before)
            for pid in pids:
                send(pid, signal.SIGCONT)
        if pids:
            self.kills.append(struck)
            self.say(f"{len(self.kills)}: {target} {number.name}, attempt {struck.attempt}, step {struck.step}")

    def pids_of(self, target: str) -> list[int]:
        """Processes of the job by their role."""
        ours = [self.process.pid] if self.process.poll() is None else []
        marked = sorted(find_marked(str(self.place.path)))
        match target:
            case "supervisor":
                return ours
            case "everything":
                return [*ours, *marked]
            case _:
                found = [pid for pid in marked if ROLES[target] in command_of(pid)]
                return self.dice.sample(found, min(len(found), 1))

    def result(self) -> dict[str, object]:
        """Adapter and account, as the last one in charge told."""
        told: dict[str, object] = json.loads(self.log.read_text().strip().splitlines()[-1])
        return told


def command_of(pid: int) -> str:
    """Its command line, empty if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def straight_run(folder: Path, inputs: Path, processes: int, steps: int) -> bytes:
    """The uninterrupted run's adapter."""
    words = [sys.executable, str(PROGRAM), str(folder), str(inputs), str(processes), str(steps)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return Path(json.loads(done.stdout.strip().splitlines()[-1])["adapter"], ADAPTER).read_bytes()


def soak(
    folder: Path, *, kills: int, seed: int, processes: int, steps: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, object]:
    """Run straight and soaked, and compare.

    Raises:
        AssertionError: something was lost, rewritten, left over or counted wrong.
    """
    straight, soaked = folder / "straight", folder / "soaked"
    for path in (straight, soaked):
        path.mkdir(parents=True)
    prepare(folder, processes, steps)
    expected = straight_run(straight, folder, processes, steps)
    run = Soak(soaked, folder, processes, steps, random.Random(seed), say)
    run.run(kills)
    return examine(run, expected)


def examine(run: Soak, expected: bytes) -> dict[str, object]:
    """What was survived; `expected`: the straight run's adapter.

    Raises:
        AssertionError: see `soak`.
    """
    wall_s, told = time.time() - run.begun_s, run.result()
    account = told["account"]
    assert isinstance(account, dict)
    assert Path(str(told["adapter"]), ADAPTER).read_bytes() == expected, "other bits than the straight run's"
    assert not find_marked(str(run.place.path)), "processes are left"
    assert not (wrong := steps_are_consistent(run.place)), wrong
    total_s = float(account["total_s"])
    pieces_s = sum(float(value) for key, value in account.items() if key.endswith("_s") and key != "total_s")
    assert abs(pieces_s - total_s) <= 0.02 * total_s + 0.1, account
    assert abs(wall_s - total_s) <= 0.02 * wall_s + run.outside_s, (account, wall_s)
    return {
        "kills": len(run.kills),
        "before_the_end": sum(kill.step < run.steps for kill in run.kills),
        "attempts": len(read_json(run.place.history)["attempts"]),
        "identical": True,
        "wall_s": round(wall_s, 1),
        "outside_the_account_s": round(wall_s - total_s, 1),
        "recovery": recovery_told(run.place, run.kills),
        "account": {key: value for key, value in account.items() if key != "per_attempt"},
        "struck": dict(sorted(count(run.kills).items())),
    }


def main(argv: list[str] | None = None) -> int:
    """Soak and print what was survived."""
    hear_interrupts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="0: enough for the kills")
    parser.add_argument("--flow", action="store_true", help="kill the whole flow")
    parser.add_argument("--stage-kills", type=int, default=0, help="strikes of each other stage; 0: a tenth of --kills")
    given = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    steps = given.steps or max(40, given.kills * STEPS_PER_KILL)
    choices = {"kills": given.kills, "seed": given.seed, "processes": given.processes, "steps": steps}
    print(f"soaking {choices} in {folder}", file=sys.stderr, flush=True)
    run: Callable[..., dict[str, object]] = soak
    if given.flow:
        from tests.soak.soak_flow import soak_flow as run

        choices["stage_kills"] = given.stage_kills or max(1, given.kills // 10)
    try:
        told = run(folder, **choices, say=lambda text: print(text, file=sys.stderr, flush=True))
    except AssertionError:
        print(f"kept for a look: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    print(json.dumps({**choices, **told}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
