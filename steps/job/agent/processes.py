"""Processes by an identity that survives reuse of their number: pid, start time and boot.

It reads /proc; where there is none (macOS) it asks psutil, for what launches and looks. Workers run on Linux only.
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
    if not _has_proc():
        import psutil

        return f"boot {psutil.boot_time():.0f}"
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> str:
    """Numbers of processes mean something within one only: a container has its own."""
    if not _has_proc():
        return platform.node()
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
    if not _has_proc():
        return _start_by_psutil(pid)
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _has_proc() -> bool:
    return (PROC / "self").exists()


def _start_by_psutil(pid: int) -> int | None:
    """Hundredths of a second, as most kernels' ticks are."""
    import psutil

    try:
        process = psutil.Process(pid)
        return (
            None if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else int(100 * process.create_time())
        )
    except psutil.Error:
        return None


def is_alive(identity: Mapping[str, Any]) -> bool:
    """Whether this very process still lives; a process of another boot does not."""
    return bool(identity["boot"] == boot_id() and start_ticks(int(identity["pid"])) == identity["start"])


def find_marked(prefix: str) -> dict[int, str]:
    """Marker by pid, of all living processes of this user whose marker begins with `prefix`; reads all of /proc."""
    if not _has_proc():
        return _marked_by_psutil(prefix)
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


def _marked_by_psutil(prefix: str) -> dict[int, str]:
    import psutil

    environments = {process.pid: process.info["environ"] for process in psutil.process_iter(["environ"])}
    markers = {pid: environment.get(MARKER, "") for pid, environment in environments.items() if environment}
    return {pid: marker for pid, marker in markers.items() if marker and marker.startswith(prefix)}


def marked_with(marker: str) -> list[int]:
    """Pids of all living processes with exactly this marker, except our own."""
    return [pid for pid, found in find_marked(marker).items() if found == marker and pid != os.getpid()]


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process; one that has just gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
