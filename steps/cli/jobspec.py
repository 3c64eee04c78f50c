"""`hyperpod-lora jobspec`: prints the PyTorchJob of a training, without a cluster."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from steps.errors import ConfigError, Problem

if TYPE_CHECKING:
    from steps.cli.view.manifest_text import Printable
    from steps.settings.plan import Plan

NOT_HERE = frozenset({"continue_from", "dry_run"})
"""Options of the flow that change nothing of the job."""


class Jobspec(click.Command):
    """Takes the flow's own options as well; they are read only when this command is used."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        """The command's options, and the flow's."""
        from steps.settings.options import OPTIONS, help_of

        known = [name for name in OPTIONS if name not in NOT_HERE]
        flow = [click.Option([f"--{name.replace('_', '-')}", name], help=help_of(name)) for name in known]
        help_option = self.get_help_option(context)
        return [*self.params, *flow, *([help_option] if help_option else [])]


@click.command(cls=Jobspec)
@click.option(
    "--config",
    envvar="HYPERPOD_LORA_CONFIG",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Where and how to run; config/hyperpod.yaml if not given.",
)
@click.option("--run", "run", default="", help="A prepared run: its id, `Flow/run id`, or its folder.")
@click.option("--write", is_flag=True, help="With --run: write what the job's pods need, so that it can be applied.")
@click.option("--root", help="With --run: another storage.root than the config's.")
def jobspec(config: Path | None, run: str, write: bool, root: str | None, **options: str | None) -> None:
    """Print the manifest of a training's PyTorchJob, with what it needs in its comments.

    Without --run, paths of the run are placeholders. With --run it is the job that the flow would submit. Nothing is written,
    unless --write is given too; then it works by hand: hyperpod-lora jobspec --run RUN --write | kubectl apply -f -
    """
    from steps.cli.view.manifest_text import by_hand, planned, text_of
    from steps.cli.view.run_folders import find_run, storage_root
    from steps.flow.launchers import read_settings
    from steps.protocol.rundir import RunDir
    from steps.settings.places import config_root
    from steps.settings.settle import settle

    settings = read_settings(config or config_root() / "hyperpod.yaml")
    given = {name: value for name, value in options.items() if value is not None}
    if run:
        refuse_options(given)
        made = by_hand(RunDir(find_run(storage_root(root or settings.storage.root), run)), write=write)
    else:
        if write:
            raise ConfigError([Problem("--write", "needs --run: there is no run directory to write into")])
        if not settings.is_on_cluster:
            what = f"is {settings.launcher.kind!r} in {config}: that runs on this machine, without a manifest"
            raise ConfigError([Problem("launcher.kind", what)])
        made = planned(laid_out(settle(lambda: settings, given)))
    warnings = owner_warnings(made)
    click.echo(text_of(made, reasons=layout_reasons(made.plan), warnings=warnings), nl=False)
    for line in warnings:
        click.echo(f"warning: {line}", err=True)


def refuse_options(given: dict[str, Any]) -> None:
    """A prepared run has decided them all.

    Raises:
        ConfigError: some were given.
    """
    if given:
        what = "is decided already by the run that --run names; leave it out, or start another run"
        raise ConfigError([Problem(f"--{name.replace('_', '-')}", what) for name in given])


def laid_out(plan: Plan) -> Plan:
    """The plan with the layout that `start` will choose, from the model's config.json, or from its preset where that is not here.

    Raises:
        ConfigError: the layout depends on sizes that nobody here knows, or the backend cannot do what is asked.
    """
    from steps.base.stage import config_at_hand
    from steps.train.stage import lay_out

    config = config_at_hand(plan.model, cache=Path(plan.settings.storage.cache).expanduser()) or plan.model.architecture
    if config:
        return lay_out(plan, config)
    if plan.is_laid_out:
        return plan
    what = f"0 is chosen from the config.json of {plan.model.name}, which is not on this machine: give a number here"
    raise ConfigError([Problem("launcher.tensor_parallel", what)])


def layout_reasons(plan: Plan) -> list[str]:
    """Why so many processes, and how they share the model."""
    if plan.settings.launcher.backend == "torchneuron":
        return list(plan.layout)
    if plan.settings.launcher.backend == "torch":
        return [f"torch backend: each of the {plan.world} processes holds the model ({plan.training.sharding})"]
    sizes = {"tensor": plan.tensor_parallel, "pipeline": plan.pipeline_parallel, "data": plan.replicas}
    chosen = ", ".join(f"{what} parallel {size}" for what, size in sizes.items() if what != "pipeline" or size > 1)
    chosen += f", {plan.processes} processes a node"
    return list(plan.layout) or [f"{chosen}: as given; the model was not looked at here, `start` does"]


def owner_warnings(made: Printable) -> list[str]:
    """The pods run as a user of their own, who has to write where this command has just written."""
    user, folder = made.spec.cluster.run_as_user, made.job.directory.attempt(made.attempt)
    if not made.is_real or not user or os.getuid() == user or folder.stat().st_mode & 0o002:
        return []
    return [
        f"{folder} belongs to user {os.getuid()}, and the pods run as user {user} (cluster.run_as_user), who has to write there: "
        + shlex.join(["chown", "-R", f"{user}:{user}", str(made.job.directory.path)])
    ]
