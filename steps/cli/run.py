"""`hyperpod-lora run`: the flow as one command, with its options checked first and one stream of lines.

The flow is `flows/lora_flow.py`, run as a process of its own, so that whatever it does is the same as without this command.
A mistake in an option is told here within a second, and leaves no failed run in Metaflow's history.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from steps.errors import ConfigError, Mistakes, Problem
from steps.settings.options import GROUPS, OPTIONS, Options, choices_of, flag, help_of

if TYPE_CHECKING:
    from steps.settings.section import Section

CONFIG = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Where and how to run; its section `run` has defaults for these options. Default: config/local.yaml.",
)


class OptionsCommand(click.Command):
    """A command whose `--help` shows the options in groups; one that does not exist is answered with the nearest."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The groups of `GROUPS`, then what belongs to none of them."""
        shown = {param.name: record for param in self.params if (record := param.get_help_record(context))}
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([shown.pop(name) for name in names])
        with formatter.section("General"):
            formatter.write_dl([*shown.values(), ("-h, --help", "Show this message and exit.")])

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The presets by name, and what each of them chooses where an option is not given."""
        from steps.settings.catalog import DatasetPreset, ModelPreset, find_dataset, find_model, preset_names

        models = {name: find_model(name) for name in preset_names("models")}
        datasets = {name: find_dataset(name) for name in preset_names("datasets")}
        formatter.write_paragraph()
        formatter.write_text(
            "Presets, with what they choose for options that are 0 or auto; a data set's wins over a model's."
        )
        formatter.write_dl([("Models:", ""), *_choices(models), ("  any other", _chosen(ModelPreset()))])
        formatter.write_dl([("Data sets:", ""), *_choices(datasets), ("  any other", _chosen(DatasetPreset()))])

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """As click does; an unknown option is one of this project's errors, which names the nearest."""
        from steps.settings.section import suggest

        try:
            return super().parse_args(context, args)
        except click.NoSuchOption as error:
            known = [f"--{name.replace('_', '-')}" for name in OPTIONS]
            what = f"no such option{suggest(error.option_name, known)}; `hyperpod-lora run --help` shows all"
            raise ConfigError([Problem(error.option_name, what)]) from error


def _choices(presets: Mapping[str, Section]) -> list[tuple[str, str]]:
    return [(f"  {name}", _chosen(preset)) for name, preset in presets.items()]


def _chosen(preset: Section) -> str:
    """The values of a preset that are an option's too, as far as they choose anything."""
    values = {name: getattr(preset, name) for name in type(preset).model_fields if name in OPTIONS}
    plain = {name: value for name, value in values.items() if value and value != "auto" and not isinstance(value, dict)}
    if "max_steps" in plain:
        plain.pop("epochs", None)
    words = {
        name: "on" if value is True else f"{value:g}" if isinstance(value, float) else value
        for name, value in plain.items()
    }
    return ", ".join(f"{name.replace('_', '-')} {word}" for name, word in words.items())


def _click_options() -> list[click.Parameter]:
    """One for each field of Options, as text: values are checked by `parse_options`, all at once."""
    return [_click_option(name, default) for name, default in asdict(Options()).items()]


def _click_option(name: str, default: object) -> click.Option:
    bare: dict[str, Any] = {"is_flag": False, "flag_value": "True"} if isinstance(default, bool) else {}
    return click.Option(
        [f"--{name.replace('_', '-')}"],
        metavar=choices_of(name) or type(default).__name__.upper(),
        help=f"{help_of(name)}  [{default}]",
        **bare,
    )


@click.command(cls=OptionsCommand, params=_click_options())
@CONFIG
@click.option("--tag", multiple=True, help="A tag for the run in Metaflow; may be given several times.")
def run(config: Path | None, tag: tuple[str, ...], **options: str | None) -> None:
    """Fine-tune a model: prepare, train, merge, evaluate.

    Without options: a small real model on a small data set, in a few minutes.
    """
    from steps.flow.process import run_flow

    given = {name: value for name, value in options.items() if value is not None}
    config, given = check(config, given)
    words = [f"{flag(name)}={value}" for name, value in given.items()]
    tags = [f"--tag={item}" for item in tag]
    sys.exit(run_flow(["run", *words, *tags], config=config))


def check(config: Path | None, given: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """Settle settings, options and presets against each other, as the flow's `start` will, and look at data that is here.

    Returns:
        Config and options as they were meant: with --continue-from, those of that run where no others are given.

    Raises:
        ConfigError: with every mistake.
    """
    from steps.flow.continuing import complete
    from steps.flow.launchers import read_settings
    from steps.prepare.look import look_at_files
    from steps.settings.places import config_root
    from steps.settings.settle import settle

    mistakes = Mistakes()
    config, given = mistakes.look(lambda: complete(config, given), (config, given))
    read = partial(read_settings, config or config_root() / "local.yaml")
    mistakes.look(lambda: settle(read, given, look=look_at_files), None)
    mistakes.tell()
    return config, given
