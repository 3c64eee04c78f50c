"""The soak of the whole flow: Metaflow's process group is killed at random moments of any step, then `resume` goes on.

Used by `soak` (`--flow`) and `test_soak`. Targets: the process group of the flow alone (its workers live on and are adopted),
the group and all workers, and the process of the running step alone (Metaflow's own @retry goes on, where the step has one).
Prepare, merge and evaluate are each struck while they hold the run directory. At the end adapter, merged model and report must be
those of the straight run.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from steps.job.agent.in_use import users_of
from steps.job.agent.processes import send
from steps.protocol.rundir import TrainDir
from tests.soak.soak import ADAPTER, LIMIT_PER_KILL_S, Soak, examine
from tests.soak.soak_checks import Kill, newest_attempt

PROJECT = Path(__file__).resolve().parents[2]
from tests.flow.flow_harness import Place  # noqa: E402
from tests.shared.clean_environment import environment_for  # noqa: E402

RUN_ID = re.compile(r"run-id (\d+)")
STAGE_S = 0.5
"""Longest wait before a strike, once a stage was seen: with the tiny model each takes a second or two."""
STAGE_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass
class FlowSoak(Soak):
    """One soaked flow."""

    flow: Place = field(kw_only=True)
    targets: tuple[str, ...] = ("flow", "everything", "step")
    stage_kills: int = 1
    """Of each stage but train."""
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

    def run(self, kills: int) -> None:
        """Prepare, train, merge and evaluate are struck in their order."""
        self.start()
        self.strike_stage("prepare")
        self.strike_training(kills)
        self.strike_stage("merge")
        self.strike_stage("evaluate")
        self.let_end()
        struck = {kill.target.partition(":")[0] for kill in self.kills}
        assert {"prepare", "merge", "evaluate"} <= struck, f"it was over before each stage was struck: {struck}"

    def strike_stage(self, stage: str) -> None:
        """Strike so often while a stage holds the run directory, as it shows to everybody."""
        for _ in range(self.stage_kills):
            if not self.wait_for_stage(stage):
                return  # it was through a moment before the last strike
            time.sleep(self.dice.uniform(0, STAGE_S))
            target, number = self.dice.choice(("flow", "step")), self.dice.choice(STAGE_SIGNALS)
            struck = Kill(
                time.time(), f"{stage}: {target}", number.name, newest_attempt(self.place), self.watched.newest
            )
            for pid in self.pids_of(target):
                send(pid, number)
            self.kills.append(struck)
            self.say(f"{len(self.kills)}: {struck.target} {struck.signal}")
            self.wait_until_gone(stage)

    def wait_for_stage(self, stage: str) -> bool:
        """Until a living process of that stage uses the newest run; False if the flow is over."""
        until_s = time.monotonic() + 5 * LIMIT_PER_KILL_S  # merge comes when all that is left was trained
        while not self.is_used_by(stage):
            if self.is_over():
                return False
            assert time.monotonic() < until_s, f"{stage} never came"
            time.sleep(0.01)
            self.look_after()
        return True

    def wait_until_gone(self, stage: str) -> None:
        """Until what was struck is dead (or is through, where it was too quick)."""
        until_s = time.monotonic() + LIMIT_PER_KILL_S
        while self.is_used_by(stage) and time.monotonic() < until_s:
            time.sleep(0.05)
        self.look_after()

    def is_used_by(self, stage: str) -> bool:
        """Whether a stage shows that it uses one of the runs."""
        return any(user.what == stage for run in self.folder.glob("runs/*/*") for user in users_of(run))

    def made(self) -> dict[str, Any]:
        """What the last run made."""
        return made_by(self.flow, RUN_ID.findall(self.log.read_text())[-1])

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


def made_by(flow: Place, run_id: str) -> dict[str, Any]:
    """What must be the same however often a run was struck: the merged model, and all of the report but times and places."""
    merged, report = flow.artifact(run_id, "merge", "merged"), flow.artifact(run_id, "evaluate", "report")
    # The adapter's digest, in `parents`, covers its training.json, which holds the run's place; its weights are compared as bits.
    told = {key: value for key, value in report.items() if key not in ("path", "digest", "details", "parents")}
    details = {key: value for key, value in report["details"].items() if not key.endswith("_s")}
    return {"merged": merged["digest"], "report": told, "details": details}


def soak_flow(
    folder: Path,
    *,
    kills: int,
    seed: int,
    processes: int,
    steps: int,
    stage_kills: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, object]:
    """Run the flow straight and soaked, and compare.

    Raises:
        AssertionError: something was lost, rewritten, left over or counted wrong.
    """
    straight, soaked = make_place(folder / "straight"), make_place(folder / "soaked")
    words = straight.run_words("--max-steps", str(steps), "--processes", str(processes))
    done = straight.call(words, timeout_s=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run_id = RUN_ID.findall(done.stdout)[-1]
    adapter = straight.artifact(run_id, "train", "adapter")["path"]
    run = FlowSoak(
        soaked.folder, soaked.folder, processes, steps, random.Random(seed), say, flow=soaked, stage_kills=stage_kills
    )
    run.run(kills)
    told = examine(run, Path(adapter, ADAPTER).read_bytes())
    expected, found = made_by(straight, run_id), run.made()
    assert found == expected, {key: (expected[key], found[key]) for key in expected if found[key] != expected[key]}
    return {**told, "same_merged_model_and_report": True}


def make_place(folder: Path) -> Place:
    """A folder of its own, with limits that a soak does not reach."""
    (folder / ".metaflow").mkdir(parents=True)
    place = Place(folder, environment_for(folder))
    limits = {"max_attempts": 10_000, "max_without_progress": 10_000, "delay_s": 0}
    place.write_config(checkpoints={"every_steps": 2}, retry=limits, deadlines={"grace_s": 20, "step_gap_s": 20})
    return place
