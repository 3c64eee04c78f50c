"""Forked processes: they hold what they were given, and never outlive the one that forked them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from steps.fork_pool import fork_pool

ROOT = Path(__file__).resolve().parents[1]
given: list[object] = []


def take(*what: object) -> None:
    given.extend(what)


def show() -> tuple[list[object], int, bool]:
    return given, os.getpid(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_process_begins_with_what_it_is_given_and_leaves_ctrl_c_to_its_parent() -> None:
    with fork_pool(1, take, "a", 1) as pool:
        told, pid, ignores = pool.submit(show).result(timeout=30)
    assert (told, ignores) == (["a", 1], True)
    assert pid != os.getpid()
    assert given == []


def test_a_killed_process_is_told() -> None:
    with fork_pool(2, take) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(die).result(timeout=30)


def test_no_process_outlives_the_one_that_forked_it() -> None:
    code = (
        "import os, time; from steps.fork_pool import fork_pool\n"
        "pool = fork_pool(2, lambda: None)\n"
        "print(*{pool.submit(os.getpid).result() for _ in range(50)}, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert children
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    parent.stdout.close()
