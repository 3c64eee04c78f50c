"""Merge against `cp` and against PEFT: wall time and peak memory of whole processes, in turn, on disk and on a RAM disk.

    python -m bench merge                   (Llama-3.2-1B-shaped, 2.5 GB; needs about 5 GB in each place)
    python -m bench merge --growth          (1 to 16 GB on disk: do time per GB and memory stay? needs 33 GB)
    python -m bench merge --shape 8b --no-peft --places /tmp

Processor time is told as well: unlike wall time it stays about the same on a busy machine. Weights are random.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench._llamas import SHAPES, make_model
from bench._report import report

ROOT = Path(__file__).resolve().parents[1]
PEFT_REPEATS, GROWTH_REPEATS = 3, 3
LOOK_S = 0.1
"""Between two looks at the memory of a process and its children."""
OURS = """
import sys
from pathlib import Path
from steps.merge.outputs import merge_folders
merge_folders(*map(Path, sys.argv[1:]))
"""
PEFT = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


GROWTH = ("0.5b", "1b", "3b", "8b")
"""1, 2.5, 6.4 and 16 GB."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One process's cost."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(command: list[str], out: Path) -> Measured:
    """Run a process to its end; `out` is removed before and after.

    Raises:
        RuntimeError: it failed.
    """
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        tree_mib = pool.submit(watch_tree, psutil.Process(process.pid), ended)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        ended.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    shutil.rmtree(out, ignore_errors=True)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {' '.join(command)}")
    return Measured(wall_s, usage.ru_utime + usage.ru_stime, max(usage.ru_maxrss / 1024, tree_mib.result()))


def watch_tree(root: psutil.Process, ended: threading.Event) -> float:
    """The most memory, in MiB, that a process and its children held together; what they share counts for each."""
    peak = 0
    while not ended.wait(LOOK_S):
        with contextlib.suppress(psutil.Error):
            peak = max(peak, sum(one.memory_info().rss for one in (root, *root.children(recursive=True))))
    return peak / 2**20


def compare(folder: Path, *, repeats: int, with_peft: bool) -> dict[str, list[Measured]]:
    """Run each contender in turn on the model in `folder`."""
    base, adapter, out = folder / "base", folder / "adapter", folder / "out"
    paths = [str(base), str(adapter), str(out)]
    contenders = {
        "cp": ["cp", "-r", "--reflink=never", str(base), str(out)],
        "ours": [sys.executable, "-c", OURS, *paths],
        "peft": [sys.executable, "-c", PEFT, *paths],
    }
    if not with_peft:
        del contenders["peft"]
    results: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, command in contenders.items():
            if name != "peft" or len(results[name]) < PEFT_REPEATS:
                results[name].append(measure(command, out))
    return results


def report_against(place: str, shape: str, results: dict[str, list[Measured]]) -> None:
    """Medians against each of the others."""
    goals = {("cp", "wall_s"): "ratio <= 1.6", ("peft", "peak_mib"): "ratio <= 0.0625"}
    for other in [name for name in results if name != "ours"]:
        for field, unit in (("wall_s", "s"), ("cpu_s", "s"), ("peak_mib", "MiB")):
            if (other, field) != ("cp", "peak_mib"):
                medians = [statistics.median(getattr(run, field) for run in results[name]) for name in ("ours", other)]
                what = f"merge {shape} on {place}, {field.split('_')[0]} against {other}"
                report(what, *medians, unit=unit, goal=goals.get((other, field), ""))


def report_growth(place: str, repeats: int) -> None:
    """Time per GB and peak memory of ever larger models; `theirs` is the next smaller one's."""
    before: tuple[str, float, float] | None = None
    for shape in GROWTH:
        with tempfile.TemporaryDirectory(dir=place, prefix="bench-merge-") as scratch:
            folder = Path(scratch)
            make_model(folder, SHAPES[shape])
            os.sync()
            gb = sum(file.stat().st_size for file in (folder / "base").iterdir()) / 1e9
            runs = compare(folder, repeats=repeats, with_peft=False)
        cpu, peak = (statistics.median(getattr(run, field) for run in runs["ours"]) for field in ("cpu_s", "peak_mib"))
        report(f"merge {shape} ({gb:.1f} GB), wall against cp", *_walls(runs), unit="s")
        if before:
            name, cpu_per_gb, their_peak = before
            report(f"merge: CPU per GB, {shape} against {name}", cpu / gb, cpu_per_gb, unit="s", goal="ratio <= 1.2")
            report(f"merge: peak memory, {shape} against {name}", peak, their_peak, unit="MiB", goal="ratio <= 1.1")
        before = shape, cpu / gb, peak


def _walls(runs: dict[str, list[Measured]]) -> tuple[float, float]:
    ours, theirs = (statistics.median(run.wall_s for run in runs[name]) for name in ("ours", "cp"))
    return ours, theirs


def main(argv: list[str]) -> int:
    """Entry point; exit status 0 when everything ran."""
    parser = argparse.ArgumentParser(prog="python -m bench merge")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--places", nargs="+", default=["/dev/shm", tempfile.gettempdir()], help="scratch folders")
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT out (it needs the whole model in memory)")
    parser.add_argument("--growth", action="store_true", help="1 to 16 GB in the last of the places")
    given = parser.parse_args(argv)
    if given.growth:
        report_growth(given.places[-1], min(given.repeats, GROWTH_REPEATS))
        return 0
    for place in given.places:
        with tempfile.TemporaryDirectory(dir=place, prefix="bench-merge-") as scratch:
            make_model(Path(scratch), SHAPES[given.shape])
            os.sync()
            results = compare(Path(scratch), repeats=given.repeats, with_peft=not given.no_peft)
        report_against(place, given.shape, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
