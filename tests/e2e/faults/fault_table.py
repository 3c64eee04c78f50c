"""docs/fault-table.md: what follows each fault, every row from a run on a real cluster; run again, it replaces its old one."""

from __future__ import annotations

import datetime
import fcntl
import json
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from steps.plain_text import both_ends
from tests.e2e.faults.fault_harness import kubectl

PATH = Path(__file__).parents[3] / "docs" / "fault-table.md"
HEAD = """# What follows each fault

Written by `make e2e`: each fault was made to happen on a real Kubernetes with the real Training Operator, in a training of one or
two worker pods that saves every second step, and each row is what was then seen. `steps lost`: done, and done again
after the last complete checkpoint. `left`: jobs, pods, services still there afterwards.
"""
LONGEST = 260


@dataclass(frozen=True)
class Row:
    """One fault."""

    fault: str
    failure_class: str
    what_a_person_reads_first: str
    attempts: int
    steps_lost: int
    left: int
    seen: str = ""

    def to_line(self) -> str:
        """As Markdown."""
        return (
            "| "
            + " | ".join(
                both_ends(str(value).replace("|", "\\|").replace("\n", " "), LONGEST) for value in astuple(self)
            )
            + " |"
        )


def versions() -> str:
    """Of the cluster."""
    server = json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    return f"{datetime.date.today().isoformat()}, Kubernetes {server}"


def write_row(row: Row, path: Path = PATH) -> None:
    """Put a row into the table, in the place of an older one of the same fault."""
    path.parent.mkdir(exist_ok=True)
    with path.with_name(".fault-table.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = path.read_text().splitlines() if path.exists() else []
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
        names = [item.name.replace("_", " ") for item in fields(Row)]
        rows.pop(names[0], None)
        rows[row.fault] = row.to_line()
        head = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        path.write_text("\n".join([HEAD, *head, *(rows[key] for key in sorted(rows))]) + "\n")
