"""The agent: a small process that outlives the supervisor, starts the workers of one attempt, and records how it ended.

    python -m steps.job.agent.agent <attempt directory>

Started by `local_launcher`; in a pod `pod_main` runs it, one on each node, with a directory of its own. It is the workers'
subreaper: a rank whose torchrun is killed becomes its child, so that none is ever lost. It sends SIGTERM to the ranks
themselves (torchrun would kill them after a time-out of its own), and kills what is left after the grace period. If the agent
itself is killed, the kernel sends torchrun (or the only rank) a SIGTERM, which stops the ranks; what survives even that is
found by its marker. It ends the workers when the supervisor's lease no longer moves. It decides nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from steps.job.agent import processes
from steps.job.agent.commands import ALONE, is_alone, workers_command
from steps.job.agent.endings import SYMPTOM_EXITS, oom_kills, ranks_of_log
from steps.protocol.train_dir import AgentDir, AttemptDir

POLL_S = 0.1
BEAT_S = 15.0
"""Between two touches of the state file: it says that its agent lives."""
ORPHAN_GRACE_S = 5.0
"""For helpers of the workers (data loaders, say) that are left when torchrun has ended in order."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PEER = "peer"
"""Why a node's ranks were ended, then."""
DETACHED = "detached\n"
"""A lease that never ends: a person started this attempt by hand, or left it running."""


class Agent:
    """One attempt's agent on one machine.

    `folder`: what only this agent writes. `plan`: module, spec, attempt, processes, grace_s, lease_s; `wrapper`, the module that
    runs torchrun, if there is one; `alone`, where the only rank needs no torchrun; where there are several nodes also nodes,
    node_rank, master_addr, master_port and tells_peers; and `shared`, the attempt's directory, if that is another.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self._own = AgentDir(folder)
        self._shared = AttemptDir(Path(plan.get("shared", folder)))
        self._plan = plan
        self._shared_look_s = float("-inf")
        self._stop_reason = ""
        self._ended_before: frozenset[int] = frozenset()
        """Ranks that had ended when the workers were asked to stop."""
        self._grace_s = float(plan["grace_s"])
        self._statuses: dict[int, int] = {}
        self._begun: dict[int, dict[str, Any]] = {}
        self._ended_s: dict[int, float] = {}
        self._lease: tuple[str, float] = ("", time.monotonic())
        self._stacks_sent = False
        self._oom_kills = oom_kills()
        self._is_alone = is_alone(plan)
        self._torchrun = 0
        """Its pid, or that of the only rank where there is no torchrun."""
        self._beat_s = time.monotonic()

    def run(self) -> int:
        """From start to exit.json; returns the exit code of torchrun or the only rank, negative for a signal."""
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGTERM, lambda *_: self._stop("stopped"))
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        write_whole(self._own.state, processes.identify(os.getpid()))
        self._torchrun = self._start_workers(lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0))
        while self._torchrun not in self._statuses and not self._stop_reason:
            self._look()
            time.sleep(POLL_S)
        if not self._stop_reason and self._statuses[self._torchrun]:
            self._tell_peers()
        self._end_all()
        code = self._statuses.get(self._torchrun, -signal.SIGKILL)
        report = self._report(code)
        self._record_silent_deaths(report)
        write_whole(self._own.exit, report)
        return code

    def _tell_peers(self) -> None:
        """They save and stop now, not when Kubernetes has come to end their pods, some seconds later."""
        if self._plan.get("tells_peers"):
            with contextlib.suppress(OSError):  # they are ended all the same
                (self._shared.peer_failed).touch()

    def _record_silent_deaths(self, report: Mapping[str, Any]) -> None:
        if not report["exit_code"] or report["reason"]:
            return
        from steps.errors import StorageError  # imported here, since an agent that sees no failure needs neither
        from steps.job.agent.runtime_log import record_silent_deaths

        try:
            record_silent_deaths(self._shared.path, report["ranks"])
        except StorageError as error:  # the exit codes still tell something
            print(f"no failure record: {error}", file=sys.stderr, flush=True)

    def _start_workers(self, before_exec: Callable[[], object]) -> int:
        with (self._own.torchrun_log).open("ab") as log:
            # start_new_session: the agent's process group can then be signalled without the workers.
            started = subprocess.Popen(
                workers_command(self._plan, self._own, self._shared),
                env={**os.environ, **(ALONE if self._is_alone else {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=before_exec,
            )
        return started.pid

    def _look(self) -> None:
        self._beat()
        self._reap()
        self._note_ends()
        if time.monotonic() - self._shared_look_s >= self._plan.get("shared_poll_s", 0.0):
            self._shared_look_s = time.monotonic()
            with contextlib.suppress(OSError):  # it is looked at again: the workers are fine
                self._look_at_shared()

    def _beat(self) -> None:
        """Show other machines that this attempt is in use; see `in_use`."""
        if time.monotonic() - self._beat_s >= BEAT_S:
            self._beat_s = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self._own.state)

    def _look_at_shared(self) -> None:
        """What the supervisor says: its lease, a request for stacks, a request to stop."""
        self._watch_lease()
        if not self._stacks_sent and (self._shared.stacks_wanted).exists():
            self._stacks_sent = True
            for pid in self._ranks():
                processes.send(pid, signal.SIGUSR1)
        if (self._shared.stop).exists():
            self._stop(str(read_or_empty(self._shared.stop).get("reason") or "stopped"))
        if (self._shared.peer_failed).exists():
            self._stop(PEER)

    def _note_ends(self) -> None:
        """When each rank ended: torchrun does not tell, and the first to go is the one to listen to."""
        for rank, identity in self._identities().items():
            if rank not in self._ended_s and not processes.is_alive(identity):
                self._ended_s[rank] = time.time()

    def _watch_lease(self) -> None:
        """End the workers when the lease has not moved for too long, by our own clock; the supervisor's is never looked at."""
        try:
            content = (self._shared.lease).read_text()
        except OSError:
            content = ""
        if content != self._lease[0] or content == DETACHED:
            self._lease = (content, time.monotonic())
        elif time.monotonic() - self._lease[1] > self._plan["lease_s"]:
            self._stop("lease")

    def _stop(self, reason: str) -> None:
        if not self._stop_reason:
            self._stop_reason, self._ended_before = reason, frozenset(self._ended_s)
        wanted = read_or_empty(self._shared.stop)
        self._grace_s = float(wanted.get("grace_s", self._grace_s))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._statuses[pid] = os.waitstatus_to_exitcode(status)

    def _identities(self) -> dict[int, dict[str, Any]]:
        """Every rank that has begun; all are looked for until all are found."""
        if len(self._begun) < self._plan["processes"]:
            with contextlib.suppress(OSError):  # what cannot be read now is read at the next look
                for rank, path in self._own.ranks():
                    if identity := read_or_empty(path):
                        self._begun[rank] = identity
        return self._begun

    def _ranks(self) -> list[int]:
        """Pids of the ranks that live."""
        return [int(item["pid"]) for item in self._identities().values() if processes.is_alive(item)]

    def _end_all(self) -> None:
        """SIGTERM to the ranks, time to save, SIGKILL to whatever is left."""
        is_orderly = not self._stop_reason and (self._is_alone or self._statuses.get(self._torchrun, 0) >= 0)
        patience_s = min(self._grace_s, ORPHAN_GRACE_S) if is_orderly else self._grace_s
        until_s = time.monotonic() + patience_s
        for pid in self._ranks() or [child.pid for child in self._descendants()]:
            processes.send(pid, signal.SIGTERM)
        while (left := self._descendants()) or self._torchrun not in self._statuses:
            if time.monotonic() > until_s:
                for child in left:
                    processes.send(child.pid, signal.SIGKILL)
            time.sleep(POLL_S)
            self._beat()
            self._reap()
            self._note_ends()

    def _descendants(self) -> list[psutil.Process]:
        return [child for child in psutil.Process().children(recursive=True) if processes.start_ticks(child.pid)]

    def _report(self, code: int) -> dict[str, Any]:
        """What exit.json holds."""
        now_s = time.time()
        codes = {0: code} if self._is_alone else ranks_of_log((self._own.torchrun_log).read_text(errors="replace"))
        for rank, identity in self._identities().items():
            if identity["pid"] in self._statuses:  # torchrun was gone, so the rank became our child
                codes[rank] = self._statuses[identity["pid"]]
        message = ""
        is_our_own = any(self._failed_by_itself(rank, found) for rank, found in codes.items())
        reason = "" if is_our_own else self._stop_reason
        if not reason and not is_our_own and code < 0 and not self._is_alone:
            reason, message = "keeper", f"torchrun was killed by {signal.Signals(-code).name}"
        if not reason and oom_kills() > self._oom_kills and -signal.SIGKILL in codes.values():
            reason = "oom_kill"
        ranks = {
            str(rank): {"exit_code": found, "finished_s": self._ended_s.get(rank, now_s)}
            for rank, found in sorted(codes.items())
        }
        node = self._plan.get("node_name", "")
        report = {"exit_code": code, "reason": reason, "message": message, "ranks": ranks, "finished_s": now_s}
        return {**report, "node": node} if node else report

    def _failed_by_itself(self, rank: int, code: int) -> bool:
        """It had failed before the workers were asked to stop, and not as the victim of another one."""
        return rank in self._ended_before and code not in (0, -signal.SIGTERM) and code not in SYMPTOM_EXITS


def read_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it is not there or not whole."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_whole(path: Path, value: object) -> None:
    """Write beside and rename. (`rundir.write_json` would do more, at the price of heavier imports.)"""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(value))
    beside.rename(path)


def main(argv: list[str]) -> int:
    """Keep the attempt in the directory that is the only argument."""
    folder = Path(argv[0])
    Agent(folder, json.loads(AgentDir(folder).plan.read_text())).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
