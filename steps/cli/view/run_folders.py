"""Run directories by the words that a person has for them: a run id, `Flow/run id`, a folder; and a training's story in lines.

For the command line. It reads directories, decides nothing, and knows no cluster.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.flow.terminal import seconds_in_words
from steps.plain_text import counted
from steps.protocol.rundir import TrainDir

NEWEST = 10
"""Trainings shown when nobody says which."""


def storage_root(given: str) -> Path:
    """The absolute folder of run directories."""
    from steps.settings.places import home

    path = Path(given).expanduser()
    return path if path.is_absolute() else home() / path


def run_folders(root: Path, *, older_than_s: float = 0.0) -> list[Path]:
    """`<root>/<flow>/<run id>` folders in which nothing was written for so long, the oldest first."""
    latest = time.time() - older_than_s
    found = [path for path in root.glob("*/*") if path.is_dir()]
    if older_than_s > 0:
        found = [path for path in found if newest_write_s(path) <= latest]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def newest_write_s(folder: Path) -> float:
    """Unix time of the newest file below a folder (its own time says only when something was made directly in it)."""
    newest = folder.stat().st_mtime
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # vanished meanwhile
                newest = max(newest, Path(parent, name).lstat().st_mtime)
    return newest


def find_run(root: Path, given: str) -> Path:
    """The run directory that `given` names: a run id, `Flow/run id`, or a folder.

    Raises:
        StorageError: none, or several; the nearest are named.
    """
    folders = run_folders(root)
    found = [path for path in folders if given in (path.name, f"{path.parent.name}/{path.name}")]
    as_path = Path(given).expanduser()
    if not found and as_path.is_dir() and is_run(as_path):
        return as_path.resolve()
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(f"{path.parent.name}/{path.name}" for path in found)
        raise StorageError(f"run {given!r} is not the only one below {root}: say {names.replace(' and ', ' or ')}")
    raise StorageError(f"no run {given!r} below {root}{nearest(given, [path.name for path in folders])}")


def is_run(path: Path) -> bool:
    """Whether a folder holds what a stage of a run leaves."""
    return any(any(path.glob(pattern)) for pattern in ("train-*", "prepared-*", "plan.json"))


def nearest(given: str, known: list[str]) -> str:
    """What else there is: the names that look like `given`, else the newest (which come last)."""
    from steps.settings.section import suggest

    if not known:
        return ": there is none"
    return suggest(given, known) or f"; the newest are {', '.join(known[-5:])}"


def trainings_of(run: Path) -> list[Path]:
    """The training directories of a run, the oldest first."""
    return sorted((path for path in run.glob("train-*") if path.is_dir()), key=lambda path: path.stat().st_mtime)


def newest_trainings(root: Path) -> list[Path]:
    """The newest training directories below `root`, the newest last."""
    from steps.job.local_jobs import train_directories

    return sorted(train_directories(root), key=lambda path: path.stat().st_mtime)[-NEWEST:]


def newest(files: Iterable[Path]) -> Path | None:
    """The folder of the newest of these files; None if there is none."""
    found = max(files, key=lambda path: path.stat().st_mtime, default=None)
    return found.parent if found else None


def beside_adapters(run: Path) -> list[Path]:
    """The folders of a finished run that its adapters can do without: checkpoints, merged models, prepared data.

    None before its model was evaluated: whatever goes on with it, `resume` say, needs them all.
    """
    trainings = [TrainDir(path) for path in trainings_of(run)]
    is_done = any(run.glob("evaluation-*/report.json")) and all(train.adapter.is_dir() for train in trainings)
    patterns = ("merged-*", "compiled-*", "prepared-*", "train-*/checkpoints", ".*.removed-*", "train-*/.*.removed-*")
    return [path for pattern in patterns for path in run.glob(pattern) if path.is_dir()] if is_done else []


def story(facts: dict[str, Any]) -> list[str]:
    """One training in a few lines, from `local_jobs.describe`."""
    account = facts["account"] or {}
    lines = [
        f"{facts['path']}",
        f"  {facts['state']}, step {facts['step']} of {facts['of'] or '?'}, newest complete checkpoint: {facts['complete_step']}"
        + (f", pids {', '.join(map(str, facts['pids']))}" if facts["pids"] else ""),
    ]
    if account:
        lines.append(
            f"  {counted(len(facts['attempts']), 'attempt')}, {seconds_in_words(account.get('total_s', 0))} in all, "
            f"goodput {account.get('goodput', 0):.0%}"
        )
    lines += [
        f"  attempt {item['attempt']}: {item['class']}"
        + (f": {item['message'].splitlines()[0]}" if item["message"] else "")
        for item in facts["attempts"]
        if item["class"] not in ("succeeded", "running")
    ]
    if facts["verdict"]:
        lines.append(f"  ended for good: {facts['verdict'].splitlines()[0]}")
    return lines
