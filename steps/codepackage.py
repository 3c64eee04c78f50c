"""Everything of Metaflow's internals that this project touches, in one place, with a test of its own.

Public Metaflow API is used elsewhere as it is. What is here may break with a new Metaflow version: `tests/test_codepackage.py`
fails then, and only this file changes.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from metaflow import current
from metaflow._vendor.click import NoSuchOption
from metaflow.exception import METAFLOW_EXIT_DISALLOW_RETRY
from metaflow.util import get_username

from steps.config import Options
from steps.validation import suggest

EXIT_NO_RETRY: int = METAFLOW_EXIT_DISALLOW_RETRY
"""A task that exits with this code is not retried by a local run, whatever @retry says."""
SOURCE_SUFFIXES = (".py", ".yaml", ".json")


def set_current(name: str, value: Any) -> None:
    """Make `current.<name>` available in the step that runs now, as @torchrun does with `current.torch`."""
    current._update_env({name: value})


def name_user() -> None:
    """Tell Metaflow who runs this where it cannot know: in a bare container there is no USER, and it takes no `root`."""
    if get_username() is None:
        account = getpass.getuser()
        os.environ["USERNAME"] = "local" if account == "root" else account


def run_command_line(flow: Callable[[], object]) -> None:
    """Run a flow's own command; an option that does not exist is answered with the nearest one of ours as well."""
    name_user()
    try:
        flow()
    except SystemExit as end:
        if isinstance(end.__context__, NoSuchOption):
            given = str(end.__context__.option_name)
            known = [f"--{name.replace('_', '-')}" for name in Options.model_fields]
            print(f"{given}: unknown{suggest(given, known)}; `run --help` shows all", file=sys.stderr)
        raise


def code_version(root: Path) -> dict[str, str]:
    """Which code this is: `digest` of the sources that Metaflow packages, and git's `commit` where there is one.

    `commit` ends in `+changes` when tracked files differ from it. Both are facts for the lineage, nothing depends on them.
    """
    version = {"digest": sources_digest(root)}
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        version["commit"] = commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    return version


def sources_digest(root: Path) -> str:
    """Hex SHA-256 over names and contents of all sources below steps/, flows/ and config/."""
    digest = hashlib.sha256()
    for path in sorted(_sources(root)):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources(root: Path) -> Iterable[Path]:
    for folder in ("steps", "flows", "config"):
        yield from (path for path in (root / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES and path.is_file())


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def pathspec() -> str:
    """`<flow>/<run id>` of the run that this step belongs to."""
    return f"{current.flow_name}/{current.run_id}"


def tag_run(tags: Iterable[str]) -> None:
    """Add tags to the run that this step belongs to."""
    from metaflow import Run

    Run(pathspec(), _namespace_check=False).add_tags(list(tags))
