"""The flow as a child process whose output is shown as one stream: no prefixes, no noise, one progress line on a terminal.

Used by `hyperpod-lora run` and `resume`. Where nothing comes for ten seconds (a step's process starts, a card is drawn), that
is said here. Ctrl-C reaches the child by itself (it is in the terminal's group) and is its to answer.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TextIO

from steps.flow.heartbeat import RARER
from steps.flow.terminal import seconds_in_words
from steps.settings.places import flow_file

PREFIX = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (?:\[\S+ \(pid \d+\)\] )?")
"""What Metaflow writes before every line: the time, and the task that said it."""
NOISE = re.compile(
    r"Metaflow [\d.]+.* executing |Project: |Validating your flow|\s*The graph looks good!|Running pylint|\s*Pylint |"
    r"Task is starting\.$|Task finished successfully\.$|Done!$|Creating local datastore|"
    r"Gathering required information|Cloning |"
    r"\w+/\S+ cloned!$|Task .* cloned|\d+ tasks? (?:is|are) running: |No tasks are waiting in the queue|"
    r"\d+ steps? ha(?:s|ve) not started: |\w+ step has not started$"
)
"""Lines of Metaflow's that tell a person nothing."""
PROGRESS = re.compile(
    r"step \d+/\d+ \| |step \d+: validation: |.*: \[[#.]+\] |.*: [\d,]+ tokens?$|.*: (?:\d+ h )?(?:\d+ min )?(?:\d+ s )?so far$"
)
"""Lines that the next of their kind may take the place of."""
TASK = re.compile(r"\[\d+/(\w+)/\d+ \(pid \d+\)\]")
"""The step that a line comes from."""
QUIET_S = 9.5
"""Just above what the steps' own words on a silence take, which say more."""
RUN_ID = re.compile(r"Workflow starting \(run-id (\S+?)\)")


def run_flow(words: Sequence[str], *, config: Path | None = None) -> int:
    """Run a command of the flow to its end and show what it says; its exit code."""
    settings = ["--config", "config", str(config)] if config else []
    begun: list[str] = []
    command = [sys.executable, "-u", str(flow_file()), "--no-pylint", *settings, *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    ) as child:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            show(with_silences(_noted(child.stdout or (), begun)), sys.stdout, is_terminal=sys.stdout.isatty())
        finally:
            signal.signal(signal.SIGINT, before)
    if words[:1] == ["resume"] and not child.returncode and not begun:
        print("nothing was left to do: that run had come to its end; another one is named by its id (`resume RUN`)")
    return child.returncode


def _noted(lines: Iterable[str], begun: list[str]) -> Iterator[str]:
    """The lines as they come; those that tell of a task's start are kept."""
    for line in lines:
        if line.rstrip().endswith("Task is starting."):
            begun.append(line)
        yield line


def with_silences(lines: Iterable[str], *, quiet_s: float = QUIET_S) -> Iterator[str]:
    """The lines as they come; where a person has seen none for `quiet_s`, one that says so. What lasts is told more rarely."""
    coming: SimpleQueue[str | None] = SimpleQueue()
    Thread(target=_hand_over, args=(lines, coming), name="lines", daemon=True).start()
    at, seen_s, told_s = "start", time.monotonic(), 0.0
    while True:
        silent_s = time.monotonic() - seen_s
        try:
            line = coming.get(timeout=max(0.0, told_s + max(quiet_s, told_s / RARER) - silent_s))
        except Empty:
            told_s = time.monotonic() - seen_s
            yield f"{at} step: {seconds_in_words(told_s)} so far\n"
            continue
        if line is None:
            return
        task = TASK.search(line)
        if task and task[1] != at:
            at, seen_s, told_s = task[1], time.monotonic(), 0.0
        if readable(line) is not None:
            seen_s, told_s = time.monotonic(), 0.0
        yield line


def _hand_over(lines: Iterable[str], to: SimpleQueue[str | None]) -> None:
    try:
        for line in lines:
            to.put(line)
    finally:
        to.put(None)


def show(lines: Iterable[str], out: TextIO, *, is_terminal: bool) -> None:
    """Write the lines as a person wants to read them; a reader that has gone ends the writing, not the reading."""
    redrawn = False
    for line in lines:
        text = readable(line)
        if text is None:
            continue
        is_progress = is_terminal and bool(PROGRESS.match(text))
        start = "\r\x1b[K" if redrawn and is_progress else "\n" if redrawn else ""
        redrawn = is_progress
        _write(out, start + text + ("" if is_progress else "\n"))
    if redrawn:
        _write(out, "\n")


def readable(line: str) -> str | None:
    """One line without Metaflow's prefix; None: nothing for a person."""
    text = PREFIX.sub("", line.rstrip("\n"), count=1)
    started = RUN_ID.match(text)
    if started:
        return f"run {started[1]}"
    return None if NOISE.match(text) else text


def _write(out: TextIO, text: str) -> None:
    try:
        out.write(text)
        out.flush()
    except BrokenPipeError:  # once: what follows, and Python's own flush at the end, goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    except ValueError:  # closed by whoever handed it over
        return
