"""What a run was started with: `options.json` in its directory, for `--continue-from` and for the commands that errors print.

Written by the flow's `start`; a run of an earlier version has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.plain_text import command
from steps.protocol.rundir import read_json, write_json

FILE, SCHEMA = "options.json", "hyperpod-lora/options/1"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the newest run in a directory was given."""

    options: dict[str, Any] = field(default_factory=dict)
    """By name; empty: an earlier version made it."""
    config: str = ""
    """Path of its config; empty: none was given, or it is not known here."""
    run_id: str = ""
    """Metaflow's; another than the directory's name where it went on with an earlier run. Empty: as the directory."""

    def save(self, run: Path) -> None:
        """Keep them in the run directory.

        Raises:
            StorageError: the disk refused.
        """
        write_json(
            run / FILE, {"schema": SCHEMA, "options": self.options, "config": self.config, "run_id": self.run_id}
        )


def read_options(run: Path) -> RunOptions:
    """What a run was started with; nothing where an earlier version made it.

    Raises:
        StorageError: the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return RunOptions()
    raw = read_json(path)
    options, config, run_id = (raw.get(name) for name in ("options", "config", "run_id"))
    if raw.get("schema") == SCHEMA and isinstance(options, Mapping) and isinstance(config, str):
        return RunOptions(dict(options), config, str(run_id or ""))
    raise StorageError(f"{path} is damaged, or of a later version: remove it, and give all options again")


def how_to_resume(run: Path) -> str:
    """The command that goes on with the newest run in a directory, as it was."""
    known = RunOptions()
    with contextlib.suppress(StorageError):  # an error is told by words that hold it: none on top
        known = read_options(run)
    return command("resume", known.run_id or run.name)


def how_to_continue(run: Path, *options: str) -> str:
    """The command that begins a run of other options in the same directory; `options` are those that differ."""
    return command("run", "--continue-from", run, *options)
