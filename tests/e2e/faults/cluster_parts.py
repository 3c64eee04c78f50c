"""Parts of the test cluster, which all run on this machine, taken away for a while: API, operator, DNS, nodes, files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.faults.fault_harness import eventually, kubectl, tool

REFUSE = ["INPUT", "-p", "tcp", "--dport", "6443", "-j", "REJECT", "--reject-with", "tcp-reset"]
BIND = """
import ctypes, os, sys
pid, folder, how = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def call(done):
    if done:
        raise OSError(ctypes.get_errno(), f"{how} {folder} of process {pid}")
space = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
call(libc.setns(space, 0x20000))
path, bind, remount, read_only, detach = folder.encode(), 4096, 32, 1, 2
if how == "bind":
    call(libc.mount(path, path, None, bind, None))
    call(libc.mount(None, path, None, bind | remount | read_only, None))
else:
    call(libc.umount2(path, detach))
"""
"""A folder bound over itself, to be read only, in another process's mount namespace."""


def running(name: str, word: str = "") -> list[psutil.Process]:
    """Processes of this machine, the nodes' among them, whose name begins so and whose command line has `word`."""
    found = psutil.process_iter(["name", "cmdline"])
    named = (item for item in found if item.info["name"].startswith(name))
    return [item for item in named if any(word in part for part in item.info["cmdline"] or [])]


def required(name: str, word: str = "") -> list[psutil.Process]:
    """The same; the test is skipped without them."""
    found = running(name, word)
    if not found or os.geteuid():
        pytest.skip(f"{name} does not run on this machine, or is not ours to touch")
    return found


@contextlib.contextmanager
def standing_still(name: str) -> Iterator[None]:
    """A program of the control plane stands still: it sees nothing, answers nothing and does nothing."""
    found = required(name)
    for process in found:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in found:
            process.send_signal(signal.SIGCONT)


def restart_operator() -> None:
    """The Training Operator is killed; another one takes its place."""
    (old,) = required("training-oper")
    old.kill()
    old.wait(20)
    tool("up")
    assert [item.pid for item in running("training-oper")] != [old.pid]


def restart_kubelet(node: str) -> None:
    """A node's kubelet is killed; its init begins another one, which finds the pods that run."""
    (old,) = required("kubelet", f"--hostname-override={node}")
    old.kill()
    eventually("a new kubelet", lambda: [item for item in running("kubelet", node) if item.pid != old.pid], limit_s=60)
    eventually(f"{node} is Ready", lambda: "True" in ready(node), limit_s=120)


@contextlib.contextmanager
def api_away() -> Iterator[None]:
    """Connections to the API are refused."""
    tool("api-stop")
    try:
        yield
    finally:
        eventually("the API is back", api_is_back, limit_s=600)


def api_is_back() -> bool:
    """Begun again until it answers: a busy machine may take longer than the tool waits."""
    with contextlib.suppress(subprocess.CalledProcessError):
        tool("api-start")
    return kubectl("get", "--raw=/readyz", check=False) == "ok"


def flap_api(times: int, every_s: float) -> None:
    """The API's port refuses for `every_s`, answers for `every_s`, and so on, for everybody; open connections are cut."""
    required("kube-apiserver")
    for _ in range(times):
        subprocess.run(["iptables", "-I", *REFUSE], check=True)
        try:
            time.sleep(every_s)
        finally:
            subprocess.run(["iptables", "-D", *REFUSE], check=True)
        time.sleep(every_s)


@contextlib.contextmanager
def node_away(node: str, *, cut: bool = False) -> Iterator[None]:
    """A node dies, or is only cut off from the network (the test cluster's nodes hang on links lora-<n>)."""
    number = node.rsplit("-", 1)[-1]
    link = ["ip", "link", "set", f"lora-{number}"]
    if cut:
        subprocess.run([*link, "down"], check=True)
    else:
        tool("node-kill", number)
    try:
        yield
    finally:
        if cut:
            subprocess.run([*link, "up"], check=True)
        else:
            tool("node-start", number)
        eventually(f"{node} is Ready", lambda: "True" in ready(node), limit_s=120)


def ready(node: str) -> str:
    return kubectl("get", "node", node, "-o", 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Here, and in the pods that work there, whatever opens a file below `folder` to write is told EROFS.

    What is open already can be written still: the kernel turns no file system read-only under an open file.
    """
    pods = required("python", "steps.job.agent.pod_main")
    there = [item for item in pods if any(str(folder) in part for part in item.cmdline())]
    spaces = [os.getpid(), *(item.pid for item in there)]
    for pid in spaces:
        subprocess.run([sys.executable, "-c", BIND, str(pid), str(folder), "bind"], check=True)
    try:
        yield
    finally:
        for pid in filter(psutil.pid_exists, spaces):
            subprocess.run([sys.executable, "-c", BIND, str(pid), str(folder), "free"], check=pid == os.getpid())
