"""The entry program of a pod (its PID 1): the agent of this node, with what only a pod needs around it.

    python -m steps.job.agent.pod_main --directory DIRECTORY --module steps.train.worker --attempt 1 --nodes 2 --processes 32 …

Started by `bootstrap` with the arguments that `pytorchjob.pod_template` writes. It waits for worker 0's name, copies the ranks'
logs to the pod's log, and ends with the failing rank's exit code and a termination message that says why. It knows nothing of
other nodes and attempts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steps import machine
from steps.job.agent import processes
from steps.job.agent.agent import PEER, Agent, read_or_empty
from steps.job.agent.endings import first_failure
from steps.job.agent.log_forwarder import LogForwarder
from steps.job.agent.neuron_versions import Versions, has_device, require_pair
from steps.protocol.events import PREFIX
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import FailureRecord, read_records, record_of
from steps.protocol.rundir import TrainDir, storage_errors
from steps.protocol.train_dir import AgentDir, AttemptDir

SHARED_POLL_S = 1.0
"""Between two looks at the shared file system: it serves many nodes."""
NAME_POLL_S = 0.5
SAY_AGAIN_S = 10.0
VICTIM = json.dumps({"reason": PEER, "message": "its ranks were stopped: another node's failed first"})
TERMINATION_LOG = Path("/dev/termination-log")


@dataclass(frozen=True, slots=True)
class Node:
    """This pod's place in the job."""

    rank: int
    pod: str
    uid: str
    name: str
    """The machine's name."""
    master: str
    port: int

    @classmethod
    def of(cls, environment: dict[str, str]) -> Node:
        """From the variables that the pod template sets."""
        return cls(
            int(environment["NODE_RANK"]),
            environment["POD_NAME"],
            environment["POD_UID"],
            environment["NODE_NAME"],
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
        )


def main(argv: Sequence[str], termination: Path = TERMINATION_LOG) -> int:
    """Run this node of the job; returns the pod's exit code, and never raises: the last words say what went wrong."""
    given, node = _arguments(argv), Node.of(dict(os.environ))
    try:
        with storage_errors(f"working in {given.directory}"):
            return run(given, node, termination)
    except Exception as error:
        record = ours(record_of(error, rank=-1, node=node.name, step=0, time_s=time.time()))
        return _end(record.exit_code, record.short(), termination)


def ours(record: FailureRecord) -> FailureRecord:
    """A failure of this program, before or beside the training: never the user's, so it is tried again."""
    if record.failure_class != FailureClass.USER:
        return record
    return replace(record, failure_class=FailureClass.UNKNOWN.value, exit_code=FailureClass.UNKNOWN.exit_code)


def run(given: argparse.Namespace, node: Node, termination: Path) -> int:
    """Keep this node's ranks to their end.

    Raises:
        StorageError: the shared directory cannot be used.
        ConfigError: the image's Neuron runtime cannot work with this node's driver.
    """
    signal.signal(signal.SIGTERM, _leave)  # PID 1 would ignore it until the agent takes it over
    shared = TrainDir(given.directory).attempt(given.attempt)
    folder = claim_folder(shared, node.rank)
    if given.recovery == "client" and folder.name != f"{node.rank:03d}":
        return _end(FailureClass.PREEMPTED.exit_code, recreated(node, shared), termination)
    if has_device():
        require_pair(node.name, Versions.read())
    with told_in(AgentDir(folder).waiting, node, given.name_wait_s):
        is_resolved = wait_for_name(node, limit_s=given.name_wait_s)
    if not is_resolved:
        return _end(FailureClass.NETWORK.exit_code, unresolved(node, given.name_wait_s), termination)
    os.environ.update(processes_environment(given, shared))
    machine.quiet_threads(os.environ)
    agent = Agent(folder, _plan(given, node, shared))
    with LogForwarder(shared, ranks=range(node.rank * given.processes, (node.rank + 1) * given.processes)):
        agent.run()
    code, words = last_words(read_or_empty(AgentDir(folder).exit), shared, node)
    return _end(code, words, termination)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m steps.job.agent.pod_main", description="Run one node of a job.")
    parser.add_argument(
        "--directory", type=Path, required=True, help="the training's directory, on the shared file system"
    )
    parser.add_argument("--module", required=True)
    parser.add_argument("--wrapper", default="", help="module that runs torchrun's command line; empty: none")
    parser.add_argument("--recovery", choices=("client", "hyperpod"), default="client")
    for name in ("attempt", "nodes", "processes", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("grace-s", "lease-s", "name-wait-s"):
        parser.add_argument(f"--{name}", type=float, required=True)
    return parser.parse_args(argv)


def _leave(number: int, frame: object) -> None:
    sys.exit(FailureClass.PREEMPTED.exit_code)


def _plan(given: argparse.Namespace, node: Node, shared: Path) -> dict[str, Any]:
    return {
        "module": given.module,
        "wrapper": given.wrapper,
        "spec": str(TrainDir(given.directory).spec),
        "attempt": given.attempt,
        "processes": given.processes,
        "grace_s": given.grace_s,
        "lease_s": given.lease_s,
        "nodes": given.nodes,
        "node_rank": node.rank,
        "node_name": node.name,
        "master_addr": node.master,
        "master_port": node.port,
        "shared": str(shared),
        "shared_poll_s": SHARED_POLL_S,
        "tells_peers": given.recovery == "client",  # HyperPod's auto-resume makes single pods anew, in the same attempt
    }


def claim_folder(shared: Path, rank: int) -> Path:
    """This agent's own directory, by an exclusive mkdir: `nodes/<rank>`, or `nodes/<rank>.<n>` for a pod that was recreated."""
    place = AttemptDir(shared)
    place.nodes.mkdir(parents=True, exist_ok=True)
    incarnation = 0
    while True:
        folder = place.node(rank, incarnation).path
        try:
            folder.mkdir()
        except FileExistsError:
            incarnation += 1
            continue
        return folder


@contextlib.contextmanager
def told_in(path: Path, node: Node, limit_s: float) -> Iterator[None]:
    """Show the launcher what this node waits for: a question to a resolver that is away may take a minute by itself."""
    if node.rank:
        path.write_text(
            f"{node.pod} on {node.name} waits for the name {node.master}, up to {limit_s:.0f} s (cluster.name_wait_s): the "
            "cluster's DNS does not answer, or worker 0 is not ready"
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # its workers' own words take its place
            path.unlink(missing_ok=True)


def wait_for_name(node: Node, *, limit_s: float) -> bool:
    """Wait until worker 0's name can be resolved, which is when its pod is ready; it does not wait for itself."""
    begun_s = said_s = time.monotonic()
    while node.rank:
        try:
            socket.getaddrinfo(node.master, node.port)
        except OSError as error:
            now_s = time.monotonic()
            if now_s - begun_s > limit_s:
                return False
            if now_s - said_s > SAY_AGAIN_S:
                said_s = now_s
                print(
                    f"waiting for {node.master} ({error.strerror}), {now_s - begun_s:.0f} s of {limit_s:.0f} s",
                    flush=True,
                )
            time.sleep(NAME_POLL_S)
        else:
            break
    return True


def processes_environment(given: argparse.Namespace, shared: Path) -> dict[str, str]:
    """Environment of torchrun and the ranks: threads, and the marker by which they are found."""
    threads = machine.threads_of(given.threads, given.processes)
    return {"OMP_NUM_THREADS": str(threads), processes.MARKER: processes.marker_of(given.directory, given.attempt)}


def last_words(ended: dict[str, Any], shared: Path, node: Node) -> tuple[int, str]:
    """(exit code, termination message) of this node's end: those of its first rank that failed by itself."""
    if ended.get("reason") == PEER:
        return FailureClass.PREEMPTED.exit_code, VICTIM
    if ended.get("reason"):
        message = {"reason": ended["reason"], "message": ended.get("message", "")}
        return FailureClass.PREEMPTED.exit_code, json.dumps(message)
    if ended.get("exit_code") == 0:
        return 0, ""
    found = first_failure(ended)
    if found is None:
        return FailureClass.PREEMPTED.exit_code, VICTIM
    first, code = found
    record = next((item for item in read_records(shared) if item.rank == first), None)
    code = code if code > 0 else 128 - code
    return code, record.short() if record else last_line(AttemptDir(shared).log(first))


def last_line(path: Path) -> str:
    """What a rank without a failure record said last, its events apart; empty if it said nothing."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith(PREFIX)), "")[-400:]


def recreated(node: Node, shared: Path) -> str:
    """The words of a pod that the operator made anew: its peers wait for a rank that can never join them."""
    message = f"pod {node.pod} was deleted from outside, and made anew with UID {node.uid}; {shared.name} ends here"
    return json.dumps({"reason": "recreated", "message": message})


def unresolved(node: Node, limit_s: float) -> str:
    """The words of a pod whose worker 0 never came."""
    message = (
        f"the name {node.master} could not be resolved for {limit_s:.0f} s (cluster.name_wait_s): worker 0 did not start, or the "
        "cluster's DNS does not answer"
    )
    record = FailureRecord(
        FailureClass.NETWORK.value, message, "NameError", -1, node.name, 0, FailureClass.NETWORK.exit_code, time.time()
    )
    return record.short()


def _end(code: int, words: str, termination: Path) -> int:
    """Leave the words where the kubelet finds them, and in the log; `code` is returned as it is."""
    if words:
        print(words, flush=True)
        try:
            termination.write_text(words)
        except OSError as error:  # the log's last lines take its place
            print(f"no termination message: {error}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # No exit handler may hold the pod back; the log forwarder's thread is the only other one.
    assert threading.main_thread() is threading.current_thread()
    os._exit(code)
