"""Run the benchmarks, one after the other, and write one table with the machine's description.

    python -m bench                    all of them
    python -m bench merge prepare      these

Every benchmark is a module here with `main(argv) -> int` that prints one JSON object a line: what, ours, theirs (or null), ratio
(or null), unit, and optionally goal. Each runs in a process of its own, so that none profits from another's warm state.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
COLUMNS = ("what", "ours", "theirs", "ratio", "unit", "goal")


def main(argv: list[str]) -> int:
    """Run the named benchmarks (all without names); returns 1 if one of them failed."""
    known = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    unknown = [name for name in argv if name not in known]
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    rows, failed = [], []
    for name in argv or known:
        print(f"== {name}", flush=True)
        measured, code = run(name)
        rows += [{"benchmark": name, **row} for row in measured]
        if code:
            failed.append(name)
    report = f"{describe_machine()}\n\n{table(rows)}\n"
    print(report)
    if not argv:
        RESULTS.write_text(f"# Measurements\n\n{report}")
        print(f"written: {RESULTS}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str) -> tuple[list[dict[str, object]], int]:
    """The JSON lines that one benchmark printed, and its exit code; its other lines are passed on."""
    code = f"import sys; from bench.{name} import main; sys.exit(main(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    found: list[dict[str, object]] = []
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


def table(rows: list[dict[str, object]]) -> str:
    """A Markdown table of the rows."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def describe_machine() -> str:
    """Processor, cores, memory, versions: what a reader needs to judge the numbers."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.date.today()}, {os.cpu_count()} cores of {processor}, {memory_gib:.0f} GiB, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}. "
        "Medians; a ratio above 1 means that we are better, unless the goal says otherwise."
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
