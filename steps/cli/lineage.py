"""`hyperpod-lora lineage`: what made a model, what was made from something, and what differs between two models.

Reads the `lineage.json` of merged folders, which names by digest all that the model was made from. So one folder alone
is enough to look up, and the models below `storage.root` are enough to look down. A run whose files are elsewhere is looked up
in Metaflow's records.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from steps.cli.view.place import CONFIG, ROOT, place_of
from steps.cli.view.run_folders import find_run, newest
from steps.errors import StorageError
from steps.plain_text import command, visible
from steps.protocol.rundir import LINEAGE

SHORTEST_DIGEST = 7
"""Characters of a digest that are enough to mean one."""

Flat = dict[str, str]
"""A lineage as `data.fingerprint` → value."""


@click.command()
@click.argument("what")
@click.option("--diff", "other", default="", help="Another run or folder: only what differs is shown, side by side.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@CONFIG
@ROOT
def lineage(what: str, other: str, as_json: bool, config: Path | None, root: str | None) -> None:
    """Show what made a model (WHAT: a run or a merged folder), or which models were made from a digest.

    A digest may be that of a data set, a base model, an adapter or the code; its first seven characters are enough.
    """
    base = place_of(root, config).root
    if other:
        click.echo(shown_difference(flat(model_of(base, what)[1]), flat(model_of(base, other)[1]), as_json=as_json))
        return
    if not is_digest(what) or Path(what).exists():
        folder, found = model_of(base, what)
        click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else shown(folder, found))
        return
    made = made_from(all_models(base), what)
    if not made:
        raise StorageError(f"no model below {base} was made from {what}, and no run has this id")
    rows = [{"model": str(folder), "run": values.get("run", ""), "as": names} for folder, values, names in made]
    lines = [f"{row['run']}  {row['model']}  ({', '.join(row['as'])})" for row in rows]
    click.echo(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else "\n".join(lines))


def is_digest(text: str) -> bool:
    """Whether a text could be the beginning of a hex digest; a run's id is digits alone."""
    return len(text) >= SHORTEST_DIGEST and set(text.lower()) <= set("0123456789abcdef") and not text.isdigit()


def model_of(root: Path, given: str) -> tuple[Path, dict[str, Any]]:
    """The newest model of a run, or the model in a folder: (folder, its lineage).

    Raises:
        StorageError: no such run, or no model in it.
    """
    as_path = Path(given).expanduser()
    if (as_path / LINEAGE).is_file():
        return as_path.resolve(), read(as_path / LINEAGE)
    try:
        run = find_run(root, given)
    except StorageError:
        if kept := from_records(given):
            return Path(f"Metaflow's records of {given}"), kept
        raise
    merged = newest(run.glob(f"merged-*/{LINEAGE}"))
    if merged is None:
        raise StorageError(
            f"{run} has no merged model yet, so no {LINEAGE}: `{command('status', run)}` tells how far it is"
        )
    return merged, read(merged / LINEAGE)


def from_records(given: str) -> dict[str, Any] | None:
    """What Metaflow's records hold for `Flow/run id`, or for a run id of the usual flow: for a run whose files are elsewhere."""
    from steps.flow.continuing import FLOW
    from steps.flow.home import keep_records_in
    from steps.flow.lineage import RUN
    from steps.settings.places import home

    name = given if "/" in given else f"{FLOW}/{given}"
    if not RUN.fullmatch(name):
        return None
    keep_records_in(home(), os.environ)  # before Metaflow is imported
    from steps.flow.metaflow_internals import kept_lineage

    return kept_lineage(name)


def all_models(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every model below the root, the newest last; what cannot be read is left out, since others are asked for."""
    files = sorted(root.glob(f"*/*/merged-*/{LINEAGE}"), key=lambda path: path.stat().st_mtime)
    found = []
    for file in files:
        try:
            found.append((file.parent, read(file)))
        except StorageError as error:
            click.echo(f"left out: {error}", err=True)
    return found


def read(file: Path) -> dict[str, Any]:
    """A lineage.

    Raises:
        StorageError: unreadable, or no JSON object.
    """
    from steps.protocol.rundir import read_json

    return read_json(file)


def flat(values: Mapping[str, Any]) -> Flat:
    """Nested values by dotted names, each as text."""
    from steps.flow.lineage import flat_text

    return flat_text(values)


def made_from(models: Iterable[tuple[Path, Mapping[str, Any]]], digest: str) -> list[tuple[Path, Flat, list[str]]]:
    """The models in whose lineage a digest stands: folder, lineage, and under which names."""
    found = []
    for folder, values in models:
        known = flat(values)
        names = [name for name, value in known.items() if value.lower().startswith(digest.lower())]
        if names:
            found.append((folder, known, names))
    return found


def shown(folder: Path, values: Mapping[str, Any]) -> str:
    """A lineage for a person: a name and a value a line."""
    known = {name: value for name, value in flat(values).items() if name != "schema"}
    width = max(map(len, known), default=0)
    return "\n".join([str(folder), *(f"  {name:<{width}}  {visible(value)}" for name, value in known.items())])


def shown_difference(one: Flat, two: Flat, *, as_json: bool) -> str:
    """What differs between two lineages, side by side."""
    names = [name for name in one | two if one.get(name) != two.get(name)]
    if as_json:
        return json.dumps({name: [one.get(name), two.get(name)] for name in names}, indent=1, ensure_ascii=False)
    if not names:
        return "nothing differs"
    width = max(map(len, names))
    return "\n".join(
        f"{name:<{width}}  {visible(one.get(name, '–'))}  →  {visible(two.get(name, '–'))}" for name in names
    )
