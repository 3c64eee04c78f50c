"""Processes by an identity that survives reuse of their number: pid, start time and boot. Linux only (it reads /proc).

Used by the agent, the local launcher and `local_jobs`. Workers and all that they start carry a marker in their environment, so
that they are found even when everyone who knew their number is dead.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKER = "HYPERPOD_LORA_JOB"
"""Environment variable of every process of a job: `<train directory>#<attempt>`."""
PROC = Path("/proc")


def marker_of(directory: Path, attempt: int) -> str:
    """The marker's value: the same, whichever links led to the directory."""
    return f"{directory.resolve()}#{attempt}"


def boot_id() -> str:
    """Changes with every start of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> str:
    """Numbers of processes mean something within one only: a container has its own."""
    return os.readlink(PROC / "self/ns/pid")


def identify(pid: int) -> dict[str, Any]:
    """The identity of a living process, as JSON values; start 0 if it is gone already."""
    place = {"boot": boot_id(), "pids": pid_namespace(), "node": platform.node()}
    return {"pid": pid, "start": start_ticks(pid) or 0, **place}


def is_visible(identity: Mapping[str, Any]) -> bool:
    """Whether such a process would be seen from here; an older version's identity tells no PID namespace, but a node."""
    if "pids" not in identity and identity.get("node") != platform.node():
        return False
    return bool(identity["boot"] == boot_id() and identity.get("pids", pid_namespace()) == pid_namespace())


def start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None if it is gone or only waits to be reaped."""
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_alive(identity: Mapping[str, Any]) -> bool:
    """Whether this very process still lives; a process of another boot does not."""
    return bool(identity["boot"] == boot_id() and start_ticks(int(identity["pid"])) == identity["start"])


def find_marked(prefix: str) -> dict[int, str]:
    """Marker by pid, of all living processes of this user whose marker begins with `prefix`; reads all of /proc."""
    found = {}
    wanted = f"{MARKER}={prefix}".encode()
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            for item in (folder / "environ").read_bytes().split(b"\0"):
                if item.startswith(wanted) and start_ticks(int(folder.name)) is not None:
                    found[int(folder.name)] = item.partition(b"=")[2].decode(errors="replace")
    return found


def marked_with(marker: str) -> list[int]:
    """Pids of all living processes with exactly this marker, except our own."""
    return [pid for pid, found in find_marked(marker).items() if found == marker and pid != os.getpid()]


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process; one that has just gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
