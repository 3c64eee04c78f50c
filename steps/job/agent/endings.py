"""How ranks ended, from what is left of them: torchrun's events, the kernel's counter, an exit.json. Light, as the agent is."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.protocol.failure_class import CLASS_OF_EXIT

SYMPTOM_EXITS = frozenset(code for code, kind in CLASS_OF_EXIT.items() if kind.meaning.is_symptom)
"""Exit codes of a rank that lost its peers (network, hang, stopped)."""
TORCHRUN_EVENT = '{"name": "torchelastic.worker.status.'
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))


def first_failure(report: Mapping[str, Any]) -> tuple[int, int] | None:
    """(rank, exit code) of the first rank that failed by itself, from what exit.json holds; None if none did."""
    failed = [
        (float(item["finished_s"]), int(rank), int(item["exit_code"]))
        for rank, item in report.get("ranks", {}).items()
        if item["exit_code"] not in (0, -signal.SIGTERM)
    ]
    return min(failed)[1:] if failed else None


def ranks_of_log(text: str) -> dict[int, int]:
    """Exit code by rank, from torchrun's events (one JSON object a line); ranks that torchrun ended itself are left out."""
    found: dict[int, int] = {}
    for line in text.splitlines():
        if not line.startswith(TORCHRUN_EVENT):
            continue
        try:
            metadata = json.loads(line)["metadata"]
            code = json.loads(metadata["metadata"]).get("exit_code", [None])[0]
            if metadata["global_rank"] is not None and code is not None:
                found[int(metadata["global_rank"])] = int(code)
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return found


def oom_kills() -> int:
    """How often the kernel has killed a process of this cgroup for want of memory; 0 where that is not told."""
    for path in OOM_COUNTERS:
        try:
            pairs = [line.split() for line in path.read_text().splitlines()]
        except OSError:
            continue
        return next((int(pair[1]) for pair in pairs if pair[:1] == ["oom_kill"]), 0)
    return 0
