"""`--continue-from RUN`: the run that is meant, and its options as defaults.

`complete` is called where a command begins (`hyperpod-lora run` and the flow's own file), the rest by `stages`. A run keeps its
options, and the path of its config where that is known, in `options.json` of its directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, Problem, StorageError
from steps.plain_text import command
from steps.protocol.rundir import RunDir, read_json, run_directory, write_json
from steps.settings.catalog import find_path, preset_names
from steps.settings.options import AUTO, OPTIONS, Options
from steps.settings.places import config_root, home
from steps.settings.plan import Plan

FILE, SCHEMA = "options.json", "hyperpod-lora/options/1"
FLOW = "LoraFlow"
OF_THE_COMMAND = ("continue_from", "dry_run")
"""Options that say what one command does, and nothing of the training."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run was started with."""

    options: dict[str, Any] = field(default_factory=dict)
    """Empty: an earlier version made it."""
    config: str = ""
    """Path; empty: none was given, or not on this machine."""


def find_run(root: str, given: str, flow: str = FLOW) -> RunDir:
    """The run directory that --continue-from names: a path, or a run id below storage.root.

    Raises:
        ConfigError: there is none.
    """
    by_id = run_directory(root, home(), flow, given.rpartition("/")[2] if given.startswith(f"{flow}/") else given)
    for candidate in (by_id.path, Path(given).expanduser().resolve()):
        if any(any(candidate.glob(name)) for name in ("train-*/spec.json", "prepared-*", "plan.json")):
            return RunDir(candidate)
    known = sorted(path.name for path in by_id.path.parent.glob("*") if any(path.glob("train-*")))
    names = ", ".join(known[-5:]) or "none"
    message = f"no run found in {by_id.path} or {Path(given).resolve()}; the newest runs there: {names}"
    raise ConfigError([Problem("--continue-from", message)])


def keep(run: RunDir, options: Options, plan: Plan, *, config: str) -> None:
    """Keep what a run was started with; what it names on this machine by its whole path, and the precision that was chosen.

    Raises:
        StorageError: the disk refused.
    """
    given = {name: value for name, value in asdict(options).items() if name not in OF_THE_COMMAND}
    for name, presets in (("model", preset_names("models")), ("dataset", preset_names("datasets"))):
        if given[name] not in presets:
            given[name] = _absolute(given[name])
    for name in ("init_adapter", "chat_template"):
        given[name] = given[name] if given[name] == AUTO else _absolute(given[name])
    given["precision"] = plan.training.precision
    write_json(run.path / FILE, {"schema": SCHEMA, "options": given, "config": config})


def _absolute(given: str) -> str:
    return str(find_path(given) or given)


def kept(run: RunDir) -> Kept:
    """What a run was started with; nothing where an earlier version made it.

    Raises:
        StorageError: the file is damaged.
    """
    path = run.path / FILE
    if not path.is_file():
        return Kept()
    raw = read_json(path)
    options, config = raw.get("options"), raw.get("config")
    if raw.get("schema") != SCHEMA or not isinstance(options, Mapping) or not isinstance(config, str):
        raise StorageError(f"{path} is damaged, or of a later version: remove it, and give all options again")
    return Kept({name: value for name, value in options.items() if name in OPTIONS}, config)


def complete(config: Path | None, given: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """Config and options of a command: with --continue-from those of that run, where others are not given.

    Raises:
        ConfigError: no such run, or the config is wrong.
        StorageError: what that run keeps is damaged.
    """
    from steps.flow.launchers import read_settings

    settings = read_settings(config or config_root() / "local.yaml")
    run = str(given.get("continue_from", settings.run.get("continue_from", AUTO)))
    if run == AUTO:
        return config, dict(given)
    before = kept(find_run(settings.storage.root, run))
    if config is None and before.config and Path(before.config).is_file():
        config = Path(before.config)
    return config, {**before.options, **given}


def complete_words(words: Sequence[str]) -> list[str]:
    """The same for the flow's own command line, whose config stands before the command as `--config config FILE`.

    Raises:
        ConfigError, StorageError: as `complete`.
    """
    if "run" not in words:
        return list(words)
    place = words.index("run")
    given = _options_in(words[place + 1 :])
    if "continue_from" not in given:
        return list(words)
    named = Path(words[words.index("--config") + 2]) if "--config" in words[:place] else None
    config, options = complete(named, given)
    first = ["--config", "config", str(config)] if config and not named else []
    added = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name not in given]
    return [*first, *words, *added]


def _options_in(words: Sequence[str]) -> dict[str, str]:
    """Our options among the words of a command: name → value."""
    found: dict[str, str] = {}
    for place, word in enumerate(words):
        name, has_value, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and (name := name.replace("-", "_")) in OPTIONS:
            found[name] = value if has_value else next(iter(words[place + 1 : place + 2]), "")
    return found


def how_to_continue(run: Path, *options: str) -> str:
    """The command that goes on with a run in its directory; `options` are those that differ."""
    before = Kept()
    with contextlib.suppress(StorageError):
        before = kept(RunDir(run))
    return command("run", "--continue-from", run, *(["--config", before.config] if before.config else []), *options)
