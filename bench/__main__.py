"""Run the benchmarks, one after the other, and write one page with the machine's description.

    python -m bench                            all of them, as in RUNS
    python -m bench merge prepare              these, each with all its runs
    python -m bench train --precision fp32     one, with its own options (`--help` tells them)

Every benchmark is a module here with `main(argv) -> int` that prints JSON lines (see `_report`). Each runs in a process of its
own, so that none profits from another's warm state. What it found takes the place of its last results in results.json, and
RESULTS.md is written anew from that: a part that was measured again stands beside the others, with its date, load and machine.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

from steps.machine import processor_features, quiet_threads

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
STORE = HERE / "results.json"
RUNS: tuple[tuple[str, ...], ...] = (
    ("merge",),
    ("merge", "--growth"),
    ("prepare",),
    ("prepare", "--growth"),
    ("train",),
    ("train", "--precision", "fp32"),
    ("train", "--processes", "2"),
    ("train", "--precision", "fp32", "--processes", "2"),
    ("tree",),
    ("evaluate",),
    ("overhead",),
    ("start",),
    ("threads",),
    ("supervisor",),
    ("checkpoints",),
)
"""In the order in which they run and stand on the page."""
ON_REQUEST = (("cluster",),)
"""Need more than this machine; they run when they are named, and have a page of their own."""
TOLD_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Processor features that decide how fast torch and numpy are."""
NOTES = """A ratio is ours / theirs: for times and memory less is better, for speeds more.
Numbers are medians of runs in turn, ours and theirs one after the other on the same machine.
The load includes what other work asked for meanwhile (1.0: one core).

On a GPU nothing was measured: none was at hand. Training there goes through the same code path.

Read the load before the numbers: 2 is a benchmark alone on its two cores. With busy neighbours even the processor time of the
same work grows, and a row shows a goal neither as met nor as missed for good. Memory is the sum over a process and its children.
"""


def main(argv: list[str]) -> int:
    """Run what is asked for; returns 1 if something failed."""
    quiet_threads(os.environ)
    names = list(takewhile(lambda word: not word.startswith("-"), argv))
    options = argv[len(names) :]
    known = {name for name, *_ in (*RUNS, *ON_REQUEST)}
    if not known.issuperset(names) or (options and len(names) != 1):
        print(f"{__doc__}\nbenchmarks: {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    chosen = (
        [(names[0], *options)]
        if options
        else [run for run in (*RUNS, *ON_REQUEST) if (not names and run in RUNS) or run[0] in names]
    )
    failed = [" ".join(command) for command in chosen if not measure(command)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure(command: tuple[str, ...]) -> bool:
    """Run one benchmark, store what it found, write the page; False if it failed."""
    title = " ".join(command)
    print(f"== {title}", flush=True)
    rows, code = run(command)
    if rows:
        store(title, rows)
    return code == 0


def run(command: tuple[str, ...]) -> tuple[list[dict[str, Any]], int]:
    """The JSON lines that one benchmark printed, and its exit code; all its lines are passed on."""
    name, *options = command
    code = f"import sys; from bench.{name} import main; sys.exit(main(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", code, *options], cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    found: list[dict[str, Any]] = []
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "what" in row:
            found.append(row)
    return found, child.wait()


def store(title: str, rows: list[dict[str, Any]]) -> None:
    """Put one run's rows in the place of its last ones and write the page."""
    kept: dict[str, Any] = json.loads(STORE.read_text()) if STORE.is_file() else {}
    load = statistics.median(row["load"] for row in rows)
    when = f"{datetime.datetime.now():%Y-%m-%d %H:%M}"
    kept[title] = {"when": when, "load": load, "machine": describe_machine(), "rows": rows}
    STORE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    apart = [name for (name,) in ON_REQUEST if title.split()[0] == name]
    path = RESULTS.with_name(f"RESULTS-{apart[0]}.md") if apart else RESULTS
    path.write_text(page({key: value for key, value in kept.items() if is_apart(key) == bool(apart)}))
    print(f"written: {path}", flush=True)


def is_apart(title: str) -> bool:
    """Whether a run has a page of its own."""
    return any(title.split()[0] == name for (name,) in ON_REQUEST)


def page(kept: dict[str, Any]) -> str:
    """All results, those of RUNS first and in their order."""
    order = [" ".join(command) for command in RUNS]
    titles = [title for title in order if title in kept] + [title for title in kept if title not in order]
    parts = [f"# Measurements\n\n{NOTES}"]
    for title in titles:
        result = kept[title]
        when = f"{result['when']}, load {result['load']:.0f}, {result['machine']}"
        parts.append(f"## {title}\n\n{when}\n\n{table(result['rows'])}\n")
    return "\n".join(parts)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of the rows."""
    columns = ("what", "ours", "theirs", "ratio", "unit", "goal", "met")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "**no**"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def describe_machine() -> str:
    """Processor, cores, memory, versions: what a reader needs to judge the numbers."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    features = processor_features("\n".join(_lines("/proc/cpuinfo")))
    fast = ", ".join(name for name in TOLD_FEATURES if name in features) or "none of " + ", ".join(TOLD_FEATURES)
    return (
        f"{os.cpu_count()} cores of {processor} ({fast}), {memory_gib:.0f} GiB, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}."
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
