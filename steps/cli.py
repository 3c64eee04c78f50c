"""The `hyperpod-lora` command: talk to a tuned model, look at runs, clean up. Heavy imports only where a command needs them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from steps.errors import LoraFlowError, StorageError
from steps.progress import seconds_in_words


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
    from steps.evaluate.talk import answer

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
@click.argument("run", default="")
@ROOT
def status(run: str, root: str) -> None:
    """Show trainings: state, progress, attempts, where the time went. RUN: a run id, or nothing for the newest ten."""
    from steps.job.leftovers import describe, train_directories

    found = [path for path in train_directories(storage_root(root)) if run in ("", path.parent.name)]
    if not found:
        raise StorageError(f"no training {f'of run {run} ' if run else ''}below {storage_root(root)}")
    for path in sorted(found, key=lambda item: item.stat().st_mtime)[-10:]:
        for line in story(describe(path)):
            click.echo(line)


@main.command()
@ROOT
@click.option("--older-than-days", default=0.0, show_default=True, help="Leave younger run directories alone.")
@click.option("--damaged", is_flag=True, help="Only what was set aside as damaged; the runs themselves stay.")
@click.option("--yes", is_flag=True, help="Remove; without it, only show.")
def clean(root: str, older_than_days: float, damaged: bool, yes: bool) -> None:
    """Show what runs left behind, and remove it with --yes: processes without a launcher, run directories."""
    from steps.job.leftovers import end_running, is_watched, running_jobs, set_aside_below

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
    from steps.job.leftovers import size_of

    for path in folders:
        click.echo(f"{size_of(path) / 2**20:10,.1f} MiB  {path}")
        if yes:
            remove(path)
    if not yes:
        click.echo(f"Nothing was removed; --yes removes all of this{included}.")


def storage_root(given: str) -> Path:
    """The absolute folder of run directories."""
    from steps.presets import project_root

    path = Path(given).expanduser()
    return path if path.is_absolute() else project_root() / path


def run_folders(root: Path, *, older_than_s: float) -> list[Path]:
    """`<root>/<flow>/<run id>` folders that have not been touched for so long, the oldest first."""
    latest = time.time() - older_than_s
    found = [path for path in root.glob("*/*") if path.is_dir() and path.stat().st_mtime <= latest]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def remove(path: Path) -> None:
    """Delete a folder; first out of the way under another name, so that half a run directory is never mistaken for one."""
    gone = path.with_name(f".{path.name}.removed")
    path.rename(gone)
    shutil.rmtree(gone)


def story(facts: dict[str, Any]) -> list[str]:
    """One training in a few lines."""
    account = facts["account"] or {}
    lines = [
        f"{facts['path']}",
        f"  {facts['state']}, step {facts['step']} of {facts['of'] or '?'}, newest complete checkpoint: {facts['complete_step']}"
        + (f", pids {', '.join(map(str, facts['pids']))}" if facts["pids"] else ""),
    ]
    if account:
        lines.append(
            f"  {len(facts['attempts'])} attempt(s), {seconds_in_words(account.get('total_s', 0))} in all, "
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
