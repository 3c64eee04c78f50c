"""The `hyperpod-lora` command: its group. Each command lies in the module of its name beside this one.

A command's module is imported when it is called, and heavy things only where a command needs them, so that `--help` answers at
once.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import click

from steps.errors import LoraFlowError, StorageError
from steps.library_versions import without_bars
from steps.machine import quiet_threads

COMMANDS = {
    "cancel": "End a run's training; its workers save first.",
    "clean": "Show what runs left behind, and remove it.",
    "endpoint": "Print how to serve a run's model.",
    "generate": "Answer a prompt with a trained model.",
    "jobspec": "Print the PyTorchJob of a training.",
    "lineage": "Show what made a model, and what was made from something.",
    "logs": "Show a rank's log.",
    "preflight": "Check the cluster that a config describes.",
    "reproduce": "Print the command that makes a run's model again, and what has changed.",
    "resume": "Go on with a run where it stopped.",
    "retry": "Let a run go on that was given up.",
    "run": "Fine-tune a model: prepare, train, merge, evaluate.",
    "status": "Show trainings: state, progress, attempts.",
}
"""Name, which is that of its module and its function → what `--help` says of it."""


class PrintedError(click.ClickException):
    """One of this project's errors, printed without a traceback."""

    def __init__(self, error: LoraFlowError) -> None:
        super().__init__(str(error))
        self.headline = error.headline

    def show(self, file: Any = None) -> None:
        """Print headline and message to stderr."""
        click.echo(f"{self.headline}: {self.message}", err=True)


class Commands(click.Group):
    """A group that imports a command when it is called; commands may raise LoraFlowError."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a name; None if there is none."""
        if name not in COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(f"steps.cli.{name}"), name)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands; none is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, context: click.Context) -> Any:
        """Run the command; print errors as sentences, with exit code 1."""
        try:
            return super().invoke(context)
        except LoraFlowError as error:
            raise PrintedError(error) from error
        except OSError as error:
            if error.filename is None:  # no file: ours to mend, so where it came from is worth reading
                raise
            raise PrintedError(unreadable(error)) from error


def unreadable(error: OSError) -> StorageError:
    """A file or folder that this user may not touch, or that is gone since it was seen."""
    path = Path(str(error.filename))
    owner = next(
        (f" (of user {there.stat().st_uid})" for there in (path, *path.parents) if os.access(there, os.F_OK)), ""
    )
    return StorageError(f"{path}{owner}: {error.strerror}; look at its permissions, or say the same as its user")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hyperpod-lora")
def main() -> None:
    """Fine-tune language models with LoRA; see what runs, and what became of it.

    `hyperpod-lora run` starts a training.
    """
    quiet_threads(os.environ)
    without_bars(os.environ)
