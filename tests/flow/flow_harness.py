"""Runs the flow as a person does, in a subprocess, with the tiny model: used by the tests in this folder."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

PROJECT = Path(__file__).resolve().parents[2]
FLOW = PROJECT / "flows" / "lora_flow.py"
SMALL = [
    "--model",
    "tiny",
    "--max-steps",
    "12",
    "--max-rows",
    "120",
    "--sequence-length",
    "256",
    "--global-batch",
    "4",
    "--micro-batch",
    "1",
    "--precision",
    "fp32",
    "--lora-dropout",
    "0.1",
]


@dataclass(frozen=True)
class Place:
    """A folder of its own for runs, cache and Metaflow's records."""

    folder: Path
    environment: dict[str, str]

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def write_config(self, **changes: Any) -> None:
        """Small and quick: everything below the folder, saves every 3 steps, short answers."""
        config = {
            "storage": {"root": str(self.folder / "runs"), "cache": str(self.folder / "cache"), "min_free_gib": 0},
            "launcher": {"threads_per_process": 1},
            "checkpoints": {"every_steps": 3},
            "retry": {"delay_s": 0.1},
            "evaluation": {"max_rows": 2, "max_loss_rows": 4},
        }
        for section, values in changes.items():
            config[section] = {**config.get(section, {}), **values}
        self.config.write_text(yaml.safe_dump(config))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, str(FLOW), *words]

    def run_words(self, *options: str) -> list[str]:
        return self.command("--config", "config", str(self.config), "run", *SMALL, *options)

    def call(self, words: Sequence[str], timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def start(self, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """In a session of its own, so that the whole group can be killed."""
        with log.open("wb") as file:
            return subprocess.Popen(
                words,
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run_directory(self, run_id: str) -> Path:
        return self.folder / "runs" / "LoraFlow" / run_id

    def artifact(self, run_id: str, step: str, name: str) -> Any:
        """Read an artifact from the local datastore, without this project's classes."""
        attempts = sorted((self.folder / ".metaflow" / "LoraFlow" / run_id / step).glob("*/*.data.json"))
        info = json.loads(attempts[-1].read_text())
        key = info["objects"][name]
        import gzip

        blob = self.folder / ".metaflow" / "LoraFlow" / "data" / key[:2] / key
        return pickle.loads(gzip.decompress(blob.read_bytes()))


def run_id_of(output: str) -> str:
    """The id in Metaflow's own first lines."""
    found = re.search(r"run-id (\d+)|\[(\d{10,})/", output)
    assert found, output[-2000:]
    return found[1] or found[2]


def wait_until(check: Callable[[], Any], *, timeout_s: float, what: str) -> Any:
    """The first true value of `check`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def processes_of(folder: Path) -> list[psutil.Process]:
    """All live processes that mention the folder in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
            found.append(process)
    return found


def events_in(place: Place) -> list[dict[str, Any]]:
    lines = [
        line for path in sorted(place.folder.glob("runs/**/events.jsonl")) for line in path.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


def steps_seen(place: Place) -> int:
    return max((event["step"] for event in events_in(place) if event["kind"] == "step"), default=0)


def checkpoint_after(place: Place, step: int) -> bool:
    return any(event["kind"] == "checkpoint" and event["step"] >= step for event in events_in(place))


def kill_and_resume(place: Place, *options: str) -> bytes:
    """A flow killed −9 with all that it started as soon as a checkpoint is there, then resumed: the weights it ends with."""
    log = place.folder / "log.txt"
    flow = place.start(place.run_words(*options), log)
    wait_until(lambda: checkpoint_after(place, 3), timeout_s=200, what="a checkpoint")
    os.killpg(flow.pid, signal.SIGKILL)
    for process in processes_of(place.folder):
        process.kill()
    flow.wait()
    assert steps_seen(place) < 12, "it was killed too late to show anything"
    resumed = place.call(place.command("resume", "--origin-run-id", run_id_of(log.read_text())))
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    assert "from the checkpoint of step" in resumed.stdout
    adapter = place.artifact(re.findall(r"run-id (\d+)", resumed.stdout)[-1], "train", "adapter")
    return Path(adapter["path"], "adapter_model.safetensors").read_bytes()
