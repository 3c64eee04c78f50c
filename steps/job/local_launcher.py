"""The local launcher: an attempt is an agent process on this machine, which runs the ranks. Satisfies `snapshot.Launcher`.

Everything that it knows lies in the attempt's directory, so another launcher, in another process, sees the same:
keeper.json (what to run), keeper-state.json and rank-<r>.json (who runs: pid, start time, boot), exit.json (how it ended).
The workers get this process's environment and the job's; it is handed over, never written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import steps
from steps import machine
from steps.job.agent import processes
from steps.job.agent.agent import read_or_empty
from steps.job.job import Job
from steps.job.snapshot import JobSnapshot, snapshot_of_local
from steps.protocol.rundir import storage_errors, write_json
from steps.protocol.train_dir import AgentDir, AttemptDir

TORCHRUN_SHUTDOWN_S = 10
"""How long torchrun waits for the peers of a failed rank: they have lost a partner, so there is nothing left to save."""


class LocalLauncher:
    """Runs attempts on this machine.

    `grace_s`: between SIGTERM and SIGKILL. `lease_s`: without a sign of a supervisor for so long, the workers are ended.
    """

    def __init__(self, *, grace_s: float = 60.0, lease_s: float = 600.0) -> None:
        self._grace_s = grace_s
        self._lease_s = lease_s
        self._agents: dict[Path, subprocess.Popen[bytes]] = {}
        self._ranks: dict[Path, dict[int, int]] = {}

    def create(
        self, job: Job, attempt: int, *, avoid_nodes: Sequence[str] = (), exclude_nodes: Sequence[str] = ()
    ) -> None:
        """Start the attempt's agent, unless it has been started. There is one node, so none can be left out.

        Raises:
            StorageError: the run directory cannot be written.
        """
        folder = job.directory.attempt(attempt)
        agent = AgentDir(folder)
        if agent.plan.exists():
            return
        plan = {
            "module": job.module,
            "wrapper": job.wrapper,
            "spec": str(job.directory.spec),
            "attempt": attempt,
            "processes": job.processes,
            "alone": job.processes == 1 and not job.wrapper and not job.needs_torchrun,
            "grace_s": self._grace_s,
            "lease_s": self._lease_s,
        }
        write_json(agent.plan, plan)
        command = [sys.executable, "-m", "steps.job.agent.agent", str(folder)]
        with storage_errors(f"writing {folder}"), agent.log.open("ab") as log:
            self._agents[folder] = subprocess.Popen(
                command,
                env=_environment(job, attempt),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def read(self, job: Job, attempt: int) -> JobSnapshot:
        """Look at the attempt's files and its agent; all of /proc is searched only when it is over."""
        folder = job.directory.attempt(attempt)
        is_alive, was_rebooted = self._agent(job, attempt)
        ended = read_or_empty(AgentDir(folder).exit)
        is_over = not is_alive or bool(ended)
        raw = {
            "created": AgentDir(folder).plan.exists(),
            "agent_alive": is_alive,
            "rebooted": was_rebooted,
            "exit": ended,
            "pids": self._pids(folder, job.processes),
            "processes": job.processes,
            "remaining": len(processes.marked_with(_marker(job, attempt))) if is_over else 1 + job.processes,
        }
        return snapshot_of_local(raw)

    def delete(self, job: Job, attempt: int, *, grace_s: float) -> None:
        """Ask the agent to end its workers; without one, or at once, signal them directly."""
        folder = job.directory.attempt(attempt)
        state = read_or_empty(AgentDir(folder).state)
        if grace_s > 0 and state and processes.is_alive(state):
            write_json(AttemptDir(folder).stop, {"grace_s": grace_s})
            processes.send(int(state["pid"]), signal.SIGTERM)
            return
        number = signal.SIGTERM if grace_s > 0 else signal.SIGKILL
        for pid in processes.marked_with(_marker(job, attempt)):
            processes.send(pid, number)

    def logs(self, job: Job, attempt: int, rank: int, *, lines: int = 400) -> str:
        """The end of rank-<r>.log, or of torchrun's own log if the rank never came to write one."""
        files = job.directory.files(attempt)
        for log in (files.log(rank), files.agent.torchrun_log, files.agent.log):
            text = tail(log, lines)
            if text:
                return text
        return ""

    def evidence(self, job: Job, attempt: int) -> Mapping[str, str]:
        """The ends of torchrun's own log and of the agent's."""
        agent = job.directory.files(attempt).agent
        return {log.name: text for log in (agent.torchrun_log, agent.log) if (text := tail(log, 400))}

    def _agent(self, job: Job, attempt: int) -> tuple[bool, bool]:
        """(whether the agent lives, whether the machine was restarted since it did)."""
        folder = job.directory.attempt(attempt)
        ours = self._agents.get(folder)
        if ours:
            return ours.poll() is None, False
        state = read_or_empty(AgentDir(folder).state)
        if not state:  # its supervisor died in the moment between starting it and its first words
            return bool(processes.marked_with(_marker(job, attempt))), False
        return processes.is_alive(state), state["boot"] != processes.boot_id()

    def _pids(self, folder: Path, expected: int) -> dict[int, int]:
        """Pid by rank; no longer looked up once all are known."""
        known = self._ranks.get(folder, {})
        if len(known) < expected:
            for rank, path in AgentDir(folder).ranks():
                pid = read_or_empty(path).get("pid")
                if pid:
                    known[rank] = int(pid)
            self._ranks[folder] = known
        return known


def _marker(job: Job, attempt: int) -> str:
    return processes.marker_of(job.directory.path, attempt)


def _environment(job: Job, attempt: int) -> dict[str, str]:
    """Ours, the job's, the thread count, and the marker by which every process of the attempt is found."""
    threads = machine.threads_of(job.threads_per_process, job.processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **job.environment}
    machine.quiet_threads(environment)
    if job.threads_per_process:
        environment["OMP_NUM_THREADS"] = str(threads)
    root = str(Path(steps.__file__).parent.parent)
    inherited = environment.get("PYTHONPATH", "")
    return {
        **environment,
        "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root,
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(TORCHRUN_SHUTDOWN_S),
        processes.MARKER: _marker(job, attempt),
    }


def tail(path: Path, lines: int) -> str:
    """The last lines of a file, at most 1 MiB of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**20))
            return b"\n".join(file.read().splitlines()[-lines:]).decode(errors="replace")
    except FileNotFoundError:
        return ""
