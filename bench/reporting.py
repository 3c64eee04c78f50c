"""What telling others costs the process that launches a training: processor time per step, for each sink.

    python -m bench.reporting [--sinks mlflow,otlp] [--steps 1000]

Each sink is run by its own pump over the events of a training of five steps a second, in rounds of ten seconds, without the
waiting between them. Servers are a process of their own, whose time is not counted. The workers are told of nothing and do
nothing for it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from steps.protocol.events import EventWriter
from steps.protocol.rundir import TrainDir
from steps.report.choose import sinks_of
from steps.report.pump import Pump
from steps.report.sink import Facts
from steps.settings.reporting import Reporting

SINKS = ("none", "tensorboard", "prometheus", "otlp", "mlflow", "wandb")
PER_ROUND = 50
SERVER = """
import sys
from tests.report.standin import serving
with serving() as server:
    server.answers = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "5"}},
        "runs/create": {"run": {"info": {"run_id": "1"}}},
    }
    print(server.url, flush=True)
    sys.stdin.read()
"""


def main(argv: list[str]) -> int:
    """Print a JSON line for each sink."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinks", default=",".join(SINKS))
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args(argv)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        for name in asked.sinks.split(","):
            print(json.dumps(measure(name, url, asked.steps)), flush=True)
        server.communicate()
    return 0


def measure(name: str, url: str, steps: int) -> dict[str, Any]:
    """Processor milliseconds a step, of this process and of those that the sink started and ended."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run" / "train-1"
        folder.mkdir(parents=True)
        facts = Facts("LoraFlow/1/train-1", folder, "tiny", "orders", steps=steps, values={"seed": "42"})
        settings = Reporting.model_validate(
            {"report_to": [] if name == "none" else [name], "mlflow_uri": url, "otlp_endpoint": url}
        )
        sinks = sinks_of(settings, facts, {})
        pump = Pump(sinks[0], TrainDir(folder), print) if sinks else None
        writer = EventWriter(TrainDir(folder).events(1), attempt=1, stream=(Path(place) / "out").open("w"))
        spent_s, began_s = 0.0, time.monotonic()
        for first in range(1, steps + 1, PER_ROUND):
            for step in range(first, first + PER_ROUND):
                writer.emit("step", step, loss=1.0 / step, lr=1e-3, tokens_per_s=100.0, grad_norm=0.5)
            if pump:
                spent_s += _round(pump, is_last=first + PER_ROUND > steps)
        took_s = time.monotonic() - began_s
    return {"sink": name, "cpu_ms_per_step": round(1000 * spent_s / steps, 4), "wall_s": round(took_s, 2)}


def _round(pump: Pump, *, is_last: bool) -> float:
    """Processor seconds of one round."""
    before = _spent_s()
    pump._round(is_last=is_last)
    return _spent_s() - before


def _spent_s() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
