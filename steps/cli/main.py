"""The `hyperpod-lora` command: its group, `generate` and `clean`; the other commands lie in modules of their own.

Those are imported when they are called, and heavy things only where a command needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from steps.cli.run_folders import run_folders, storage_root
from steps.errors import LoraFlowError
from steps.machine import quiet_threads

ELSEWHERE = {
    "status": ("look", "Show trainings: state, progress, attempts."),
    "logs": ("look", "Show a rank's log."),
    "cancel": ("act", "End a run's training; its workers save first."),
    "retry": ("retry", "Let a run go on that was given up."),
    "jobspec": ("jobspec", "Print the PyTorchJob of a training."),
    "preflight": ("preflight", "Check the cluster that a config describes."),
}
"""Commands by name: the module beside this one that holds it, and what `--help` says of it."""


class Words(click.ClickException):
    """One of this project's errors, printed without a traceback."""

    def __init__(self, error: LoraFlowError) -> None:
        super().__init__(str(error))
        self.headline = error.headline

    def show(self, file: Any = None) -> None:
        """Print headline and message to stderr."""
        click.echo(f"{self.headline}: {self.message}", err=True)


class Commands(click.Group):
    """A group whose commands may raise LoraFlowError."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All names, in the order of the alphabet."""
        return sorted([*super().list_commands(context), *ELSEWHERE])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a name, imported if it lies elsewhere."""
        if name not in ELSEWHERE:
            return super().get_command(context, name)
        found: click.Command = getattr(importlib.import_module(f"steps.cli.{ELSEWHERE[name][0]}"), name)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands; none is imported for it."""
        here = {name: command.get_short_help_str(limit=80) for name, command in self.commands.items()}
        known = here | {name: words for name, (_, words) in ELSEWHERE.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(known.items()))

    def invoke(self, context: click.Context) -> Any:
        """Run the command; turn errors into words and exit code 1."""
        try:
            return super().invoke(context)
        except LoraFlowError as error:
            raise Words(error) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hyperpod-lora")
def main() -> None:
    """Fine-tune language models with LoRA; see what runs, and what became of it.

    Training itself starts with `python flows/lora_flow.py run`.
    """
    quiet_threads(os.environ)


@main.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("prompt")
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Base model's folder, where MODEL is an adapter.",
)
@click.option("--system", default="", help="System turn before the prompt.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer.")
def generate(model: Path, prompt: str, base: Path | None, system: str, max_new_tokens: int) -> None:
    """Answer PROMPT with the model in MODEL: a merged folder, or an adapter with --base."""
    from steps.evaluate.chat import answer

    answer(
        model,
        prompt,
        base=base,
        system=system,
        max_new_tokens=max_new_tokens,
        stream=lambda text: click.echo(text, nl=False),
    )
    click.echo()


ROOT = click.option(
    "--root", default=".lora", show_default=True, help="storage.root of the config; relative to the project's folder."
)


@main.command()
@ROOT
@click.option("--older-than-days", default=0.0, show_default=True, help="Leave younger run directories alone.")
@click.option("--damaged", is_flag=True, help="Only what was set aside as damaged; the runs themselves stay.")
@click.option("--yes", is_flag=True, help="Remove; without it, only show.")
def clean(root: str, older_than_days: float, damaged: bool, yes: bool) -> None:
    """Show what runs left behind, and remove it with --yes: processes without a launcher, run directories."""
    from steps.job.local_jobs import end_running, is_watched, running_jobs, set_aside_below

    base = storage_root(root)
    if damaged:
        clear(set_aside_below(base), yes=yes)
        return
    for job in running_jobs(base):
        if job.is_watched:
            click.echo(f"running, watched: {job.directory} (left alone)")
            continue
        click.echo(f"running, no launcher: attempt {job.attempt} of {job.directory}, {len(job.pids)} processes")
        if yes:
            killed = end_running(job, grace_s=60.0)
            click.echo(f"  ended{f'; {killed} had to be killed' if killed else ', its state is saved'}")
    unwatched = (
        path
        for path in run_folders(base, older_than_s=older_than_days * 86400)
        if not any(is_watched(training) for training in path.glob("train-*"))
    )
    clear(unwatched, yes=yes, included=", merged models and adapters included")


def clear(folders: Iterable[Path], *, yes: bool, included: str = "") -> None:
    """Show folders with their sizes; with `yes`, remove them."""
    from steps.job.local_jobs import size_of

    for path in folders:
        click.echo(f"{size_of(path) / 2**20:10,.1f} MiB  {path}")
        if yes:
            remove(path)
    if not yes:
        click.echo(f"Nothing was removed; --yes removes all of this{included}.")


def remove(path: Path) -> None:
    """Delete a folder; first out of the way under another name, so that half a run directory is never mistaken for one."""
    gone = path.with_name(f".{path.name}.removed")
    path.rename(gone)
    shutil.rmtree(gone)
