"""`hyperpod-lora reproduce`: the command that trains the same again, and what has changed since.

Reads what the run's directory keeps: its options, its plan, its model's lineage. Compares code, libraries, lock, settings and
data with what is here now. Starts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from steps.cli.view.place import CONFIG, ROOT, place_of
from steps.cli.view.run_folders import find_run, newest
from steps.errors import LoraFlowError, StorageError
from steps.plain_text import command, visible

if TYPE_CHECKING:
    from steps.flow.training import Inputs
    from steps.protocol.run_options import RunOptions

UNKNOWN = "not told by that run, which an earlier version made"


@click.command()
@click.argument("what")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@CONFIG
@ROOT
def reproduce(what: str, as_json: bool, config: Path | None, root: str | None) -> None:
    """Print the command that makes the model of WHAT (a run) again, and what has changed since: code, libraries, settings, data.

    The exit code is 1 where something has changed.
    """
    from steps.flow.training import read_inputs
    from steps.protocol.run_options import read_options
    from steps.protocol.rundir import RunDir

    run = find_run(place_of(root, config).root, what)
    options, inputs = read_options(run), read_inputs(RunDir(run))
    words, changed = command_of(run, options), list(changes(run, options, inputs))
    if as_json:
        click.echo(json.dumps({"command": words, "changed": [list(pair) for pair in changed]}, ensure_ascii=False))
    else:
        told = [f"  {name}: {visible(text)}" for name, text in changed]
        click.echo("\n".join([words, "", "changed since:" if told else "nothing has changed since", *told]))
    click.get_current_context().exit(1 if changed else 0)


def command_of(run: Path, options: RunOptions) -> str:
    """`hyperpod-lora run` with all that the run was given and that is not the usual value.

    Raises:
        StorageError: nobody kept it.
    """
    from steps.settings.options import Options, flag

    if not options.options:
        raise StorageError(f"{run} does not tell what it was started with: an earlier version made it")
    usual = asdict(Options())
    given = [f"{flag(name)}={value}" for name, value in options.options.items() if value != usual.get(name)]
    return command("run", *(["--config", options.config] if options.config else []), *given)


def changes(run: Path, options: RunOptions, inputs: Inputs) -> Iterator[tuple[str, str]]:
    """What is not as it was: (what, from what to what)."""
    then = _lineage(run)
    yield from _of_code(then)
    yield from _of_settings(options, inputs)
    yield from _of_data(inputs)


def _lineage(run: Path) -> Mapping[str, Any]:
    """The newest model's; nothing where there is none yet."""
    from steps.protocol.rundir import LINEAGE, read_json

    found = newest(run.glob(f"merged-*/{LINEAGE}"))
    return read_json(found / LINEAGE) if found else {}


def _of_code(then: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from steps.flow.lineage import flat_text, locked_libraries
    from steps.flow.metaflow_internals import code_version
    from steps.library_versions import installed_versions
    from steps.settings.places import project_root

    if not then:
        yield "code", "not known: that run has no merged model"
        return
    root = project_root()
    now = {"code": {**code_version(root), **locked_libraries(root)}, "libraries": installed_versions()}
    for part, values in now.items():
        before = then.get(part)
        if not isinstance(before, Mapping):
            yield part, UNKNOWN
            continue
        yield from _differences(part, flat_text(before), flat_text(values))


def _differences(part: str, before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in dict(before) | dict(now):
        if before.get(name) != now.get(name):
            yield f"{part}.{name}", f"{before.get(name, 'none')} → {now.get(name, 'none')}"


def _of_settings(options: RunOptions, inputs: Inputs) -> Iterator[tuple[str, str]]:
    """The config's file against the settings that the run had."""
    from steps.flow.launchers import read_settings
    from steps.flow.lineage import flat_text
    from steps.settings.places import config_root

    file = Path(options.config) if options.config else config_root() / "local.yaml"
    try:
        now = read_settings(file).model_dump(mode="json")
    except LoraFlowError as error:
        yield "config", str(error)
        return
    yield from _differences("config", flat_text(inputs.plan.settings.model_dump(mode="json")), flat_text(now))


def _of_data(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """The data as it is now, file by file; where it is no file, by what tells whether it changed."""
    from steps.flow.deciding import cache_folder
    from steps.prepare.stage import is_as_prepared

    plan, base, prepared = inputs.plan, inputs.base, inputs.prepared
    try:
        source, is_same = is_as_prepared(plan, base, prepared, cache=cache_folder(plan))
    except LoraFlowError as error:
        yield "data", f"cannot be looked at: {error}"
        return
    before, now = (
        {name: digest for digest, _, name in (line.partition("  ") for line in files)}
        for files in (prepared.files, source.files)
    )
    listed = list(_differences("data", before, now))
    yield from listed
    if not is_same and not listed:
        yield "data", "its content, or this version's way to read it, is another"
