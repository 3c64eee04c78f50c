"""How long one waits before anything happens: both `--help`, and the worker from its process's start to the first step.

    python -m bench start [--times 7]

`--help` stands beside that of a bare Metaflow flow. The worker trains a tiny model; beside it stands a process that only imports
torch and transformers' Trainer, then loads the same model and takes it through one step: what that takes after the imports is
left out of the worker's time. Medians of whole processes, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench._report import report
from bench._rows import write_rows
from bench.prepare import fetch_model
from bench.train import make_spec
from steps.protocol.events import EventTail
from steps.train import stage
from steps.train.spec import TrainSpec

ROOT = Path(__file__).resolve().parents[1]
BARE_FLOW = """
from metaflow import FlowSpec, step
class BareFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)
    @step
    def end(self):
        pass
if __name__ == "__main__":
    BareFlow()
"""
PEER = """
import json, sys, time
begun = time.perf_counter()
import torch
from transformers import Trainer
imported = time.perf_counter()
from transformers import AutoModelForCausalLM
from peft import LoraConfig, get_peft_model
model = get_peft_model(AutoModelForCausalLM.from_pretrained(sys.argv[1]), LoraConfig(target_modules="all-linear"))
optimizer = torch.optim.AdamW(model.parameters())
ids = torch.arange(1, 257).reshape(2, 128)
model(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
print(json.dumps([imported - begun, time.perf_counter() - imported]))
"""
TINY = """
import sys
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=49152
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
"""


def main(argv: list[str]) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench start")
    parser.add_argument("--times", type=int, default=7)
    times = parser.parse_args(argv).times
    with tempfile.TemporaryDirectory(prefix="bench-start-") as scratch:
        report_help(Path(scratch), times)
        report_worker(Path(scratch), times)
    return 0


def report_help(scratch: Path, times: int) -> None:
    """Both commands, beside a flow that does nothing."""
    bare = scratch / "bare_flow.py"
    bare.write_text(BARE_FLOW)
    console = Path(sys.executable).with_name("hyperpod-lora")
    flow, theirs, ours = in_turn(
        times,
        lambda: seconds(sys.executable, str(ROOT / "flows" / "lora_flow.py"), "--help"),
        lambda: seconds(sys.executable, str(bare), "--help"),
        lambda: seconds(str(console), "--help"),
    )
    report("flows/lora_flow.py --help, against a bare Metaflow flow's", flow, theirs, unit="s", goal="ratio <= 1.3")
    report("hyperpod-lora --help", ours, unit="s", goal="ours < 0.5")


def report_worker(scratch: Path, times: int) -> None:
    """The worker's own share of the time until its first step."""
    model = scratch / "model"
    output(sys.executable, "-c", TINY, str(model))
    for file in fetch_model().glob("*token*"):
        shutil.copy(file, model)
    spec = make_tiny_spec(scratch, model)
    whole: list[float] = []
    imports: list[float] = []
    rest: list[float] = []
    output(
        sys.executable, "-c", f"import {stage.WORKER}, steps.train.pytorch.backend, steps.train.pytorch.training"
    )  # bytecode
    for number in range(times):
        whole.append(until_first_step(spec.model_copy(update={"directory": str(scratch / f"train-{number}")})))
        one, other = json.loads(output(sys.executable, "-c", PEER, str(model)))
        imports.append(one)
        rest.append(other)
    ours = statistics.median(whole) - statistics.median(rest)
    what = "worker: process start to first step, less model load and first step, against importing torch and Trainer"
    report(what, ours, statistics.median(imports), unit="s", goal="ratio <= 1")


def make_tiny_spec(scratch: Path, model: Path) -> TrainSpec:
    """One step of two rows, no validation."""
    rows = write_rows(scratch / "rows.jsonl", 50, model=model)
    asked = argparse.Namespace(model=str(model), precision="fp32", steps=1, global_batch=2, processes=1, threads=0)
    return make_spec(asked, rows, packed=False)


def until_first_step(spec: TrainSpec) -> float:
    """Seconds from starting the worker's process to its first step's event."""
    spec.place.path.mkdir()
    spec.place.spec.write_text(json.dumps(spec.to_dict()))
    begun_s = time.time()
    output(sys.executable, "-m", stage.WORKER, str(spec.place.spec), "--attempt", "1")
    [first] = [event for event in EventTail(spec.place.events(1)).read_new() if event.kind == "first_step"]
    return first.time_s - begun_s


def in_turn(times: int, *works: Callable[[], float]) -> list[float]:
    """The median of each."""
    found = [[work() for work in works] for _ in range(times + 1)][1:]  # the first one warms up
    return [statistics.median(column) for column in zip(*found, strict=True)]


def seconds(*command: str) -> float:
    """Wall time of a whole process."""
    begun_s = time.perf_counter()
    output(*command)
    return time.perf_counter() - begun_s


def output(*command: str) -> str:
    """What a process prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **stage.PROCESS_ENVIRONMENT}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # from the second start on, bytecode is there, as for everyone
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
