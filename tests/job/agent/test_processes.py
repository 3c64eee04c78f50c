"""Processes by their identity, with /proc and without one, as on macOS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steps.job.agent import processes
from steps.job.agent.processes import MARKER, find_marked, identify, is_alive, is_visible, start_ticks


@pytest.mark.parametrize("has_proc", [True, False], ids=["Linux", "without /proc"])
def test_a_process_is_known_by_more_than_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_proc: bool
) -> None:
    if not has_proc:
        monkeypatch.setattr(processes, "PROC", tmp_path)
    marker = f"{tmp_path}#1"
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, MARKER: marker}
    )
    try:
        known = identify(child.pid)
        assert is_alive(known)
        assert is_visible(known)
        assert not is_alive({**known, "start": known["start"] - 1})
        assert not is_alive({**known, "boot": "another"})
        assert not is_visible({**known, "pids": "another"})
        assert find_marked(str(tmp_path)) == {child.pid: marker}
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert start_ticks(child.pid) is None  # it only waits to be reaped
    finally:
        child.kill()
        child.communicate()
    assert not is_alive(known)
    assert find_marked(str(tmp_path)) == {}
