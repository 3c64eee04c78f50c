"""How OpenMP's threads should wait: training steps and single forward passes under each setting, idle and beside busy loops.

    python -m bench threads [--steps 8] [--busy 0 2]

`spin` is libgomp's default, the numbers are GOMP_SPINCOUNT, `passive` is OMP_WAIT_POLICY=PASSIVE. Each setting is a process of
its own, on the demo's shapes (a Llama of 6 layers, 576 wide); in turn, medians. What a run uses is `steps.machine.QUIET_THREADS`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

from bench._report import report

SETTINGS: dict[str, dict[str, str]] = {
    "spin": {},
    "10000": {"GOMP_SPINCOUNT": "10000"},
    "1000": {"GOMP_SPINCOUNT": "1000"},
    "100": {"GOMP_SPINCOUNT": "100"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
WORK = """
import json, sys, time, statistics, torch
from transformers import LlamaConfig, LlamaForCausalLM
steps = int(sys.argv[1])
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=9,
    num_key_value_heads=3, vocab_size=8192))
ids = torch.randint(0, 8192, (4, 96))
def timed(work, times):
    found = []
    for _ in range(times):
        begun = time.perf_counter(); work(); found.append(time.perf_counter() - begun)
    return statistics.median(found)
def step():
    model.zero_grad(); model(input_ids=ids, labels=ids).loss.backward()
def forward():
    with torch.no_grad(): model(input_ids=ids[:1, :1])
step(); forward()
print(json.dumps([timed(step, steps), timed(forward, 10 * steps)]))
"""


def measure(name: str, steps: int) -> tuple[float, float]:
    """(seconds of a training step, seconds of one token's forward pass) under a setting."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", WORK, str(steps)]
    done = subprocess.run(
        command, env={**clean, **SETTINGS[name]}, capture_output=True, text=True, check=True, timeout=900
    )
    step, forward = json.loads(done.stdout.splitlines()[-1])
    return step, forward


def main(argv: list[str]) -> int:
    """Print a row for each setting, work and number of busy loops; the peer is libgomp's default at the same load."""
    parser = argparse.ArgumentParser(prog="python -m bench threads")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 2])
    asked = parser.parse_args(argv)
    for busy in asked.busy:
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            found = [{name: measure(name, asked.steps) for name in SETTINGS} for _ in range(asked.rounds)]
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        for place, what in enumerate(("training step", "forward pass of one token")):
            medians = {name: statistics.median(each[name][place] for each in found) for name in SETTINGS}
            for name, seconds in medians.items():
                report(
                    f"{what}, {busy} busy loops: {name}", ours=1000 * seconds, theirs=1000 * medians["spin"], unit="ms"
                )
    return 0
