"""The soak of the whole flow: Metaflow's process group is killed at random moments of any step, then `resume` goes on.

Used by `soak` (`--flow`) and `test_soak`. Targets: the process group of the flow alone (its workers live on and are adopted),
the group and all workers, and the process of the running step alone (Metaflow's own @retry goes on, where the step has one).
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from steps.protocol.rundir import TrainDir
from tests.soak.soak import ADAPTER, Soak, examine

PROJECT = Path(__file__).resolve().parents[2]
from tests.flow.flow_harness import Place  # noqa: E402
from tests.shared.clean_environment import environment_for  # noqa: E402

RUN_ID = re.compile(r"run-id (\d+)")


@dataclass
class FlowSoak(Soak):
    """One soaked flow."""

    flow: Place = field(kw_only=True)
    targets: tuple[str, ...] = ("flow", "everything", "step")
    outside_s: float = 1e9  # prepare, merge and evaluate are no part of the account

    @property
    def place(self) -> TrainDir:
        """The newest training's directory: a flow killed in its first step starts anew, with a run directory of its own."""
        found = sorted(self.folder.glob("runs/*/*/train-*"), key=lambda path: path.stat().st_mtime)
        return TrainDir(found[-1] if found else self.folder / "train-none")

    def command(self) -> list[str]:
        """The first time `run`, then `resume` of the newest run."""
        runs = RUN_ID.findall(self.log.read_text()) if self.log.is_file() else []
        if not runs:
            return self.flow.run_words("--max-steps", str(self.steps), "--processes", str(self.processes))
        return self.flow.command("resume", "--origin-run-id", runs[-1])

    def start(self) -> None:
        """As a person would, in the flow's own environment."""
        words = self.command()
        with self.log.open("ab") as log:
            self.started = subprocess.Popen(
                words, cwd=self.folder, env=self.flow.environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_for_a_moment(self, before: int) -> None:
        """Half of them in whatever step the flow is in."""
        if self.dice.random() < 0.5:
            super().wait_for_a_moment(before)
        else:
            self.pause(self.dice.uniform(1, 25), before)

    def pids_of(self, target: str) -> list[int]:
        """The flow's process group, with or without the workers, or its newest step."""
        group = [process.pid for process in psutil.process_iter() if has_group(process.pid, self.process.pid)]
        if target == "step":
            return group[-1:] if len(group) > 1 else []
        return group if target == "flow" else [*group, *super().pids_of("everything")]

    def result(self) -> dict[str, Any]:
        """Adapter and account of the train step's artifacts."""
        newest = RUN_ID.findall(self.log.read_text())[-1]
        adapter = self.flow.artifact(newest, "train", "adapter")
        return {"adapter": adapter["path"], "account": adapter["account"]}


def has_group(pid: int, group: int) -> bool:
    """Whether a process is in a process group."""
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False


def soak_flow(
    folder: Path, *, kills: int, seed: int, processes: int, steps: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, object]:
    """Run the flow straight and soaked, and compare.

    Raises:
        AssertionError: something was lost, rewritten, left over or counted wrong.
    """
    straight, soaked = make_place(folder / "straight"), make_place(folder / "soaked")
    words = straight.run_words("--max-steps", str(steps), "--processes", str(processes))
    done = straight.call(words, timeout_s=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    expected = straight.artifact(RUN_ID.findall(done.stdout)[-1], "train", "adapter")["path"]
    run = FlowSoak(soaked.folder, soaked.folder, processes, steps, random.Random(seed), say, flow=soaked)
    run.run(kills)
    return examine(run, Path(expected, ADAPTER).read_bytes())


def make_place(folder: Path) -> Place:
    """A folder of its own, with limits that a soak does not reach."""
    (folder / ".metaflow").mkdir(parents=True)
    place = Place(folder, environment_for(folder))
    limits = {"max_attempts": 10_000, "max_without_progress": 10_000, "delay_s": 0}
    place.write_config(checkpoints={"every_steps": 2}, retry=limits, deadlines={"grace_s": 20, "step_gap_s": 20})
    return place
