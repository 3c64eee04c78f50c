"""What the fixed tree of gradients costs a step: against DistributedDataParallel's own accumulation and all-reduce.

    python -m bench tree [--steps 10]

The tree is why 1, 2 and 4 processes end with equal bits (`steps/train/loop/tree.py`). Both sides sum gradients that cost next to
nothing to compute, of as many values as LoRA has on a small and on a large model, one thread a process, over gloo. So the
difference is milliseconds a step, to be held against steps of seconds; what DDP hides behind a real backward it cannot hide here.
The quickest of the steps on each side: other work on the machine can only add.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench._report import report

ROOT = Path(__file__).resolve().parents[1]
CASES = (
    ("4.9 M values (SmolLM2-135M, rank 16)", 4_900_000, (1, 2, 4)),
    ("42 M values (Llama 3.1 8B, rank 16)", 42_000_000, (1, 2)),
)
"""What, how many, on how many processes."""
MICRO_BATCHES = 8
"""Of a step, over all processes."""


def main(argv: list[str]) -> int:
    """Each number of values on each number of processes."""
    parser = argparse.ArgumentParser(prog="python -m bench tree")
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args(argv).steps
    for name, values, numbers in CASES:
        for processes in numbers:
            tree_s, ddp_s = measure(values, processes, steps)
            what = f"gradients of a step, {name}, {MICRO_BATCHES} micro-batches on {processes} process(es): tree, DDP"
            report(what, 1e3 * tree_s, 1e3 * ddp_s, unit="ms")
    return 0


def measure(values: int, processes: int, steps: int) -> tuple[float, float]:
    """Seconds of the quickest step by the tree, and by DDP."""
    with tempfile.TemporaryDirectory(prefix="bench-tree-") as folder:
        out = Path(folder) / "times.json"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *("-m", "bench._tree_rank", str(out), str(values), str(MICRO_BATCHES // processes), str(steps)),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        found = json.loads(out.read_text())
    return min(found["tree"]), min(found["ddp"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
