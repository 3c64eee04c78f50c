"""`--continue-from RUN`: the run that is meant, and its options as defaults.

`complete` is called where a command begins (`hyperpod-lora run` and the flow's own file), the rest by `stages`. What a run keeps
is in `protocol.run_options`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, Problem
from steps.protocol.run_options import RunOptions, read_options
from steps.protocol.rundir import RunDir, run_directory
from steps.settings.catalog import find_path, preset_names
from steps.settings.mixture import absolute
from steps.settings.options import AUTO, OF_THE_COMMAND, OPTIONS, Options, flag
from steps.settings.places import config_root, home
from steps.settings.plan import Plan

FLOW = "LoraFlow"


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


def keep(run: RunDir, options: Options, plan: Plan, *, config: str, run_id: str = "") -> None:
    """Keep what a run was started with; what it names on this machine by its whole path, and the precision that was chosen.

    Raises:
        StorageError: the disk refused.
    """
    given = {name: value for name, value in asdict(options).items() if name not in OF_THE_COMMAND}
    for name, presets, whole in (
        ("model", preset_names("models"), _absolute),
        ("dataset", preset_names("datasets"), absolute),
    ):
        if given[name] not in presets:
            given[name] = whole(given[name])
    for name in ("init_adapter", "chat_template"):
        given[name] = given[name] if given[name] == AUTO else _absolute(given[name])
    given["precision"] = plan.training.precision
    RunOptions(given, config, run_id).save(run.path)


def _absolute(given: str) -> str:
    return str(find_path(given) or given)


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
    try:
        before = read_options(find_run(settings.storage.root, run).path)
    except ConfigError:
        if settings.is_on_cluster:  # this machine need not see the shared directory: `start` does
            return config, dict(given)
        raise
    if config is None and before.config and Path(before.config).is_file():
        config = Path(before.config)
    return config, {**_known(before), **given}


def complete_in_pod(root: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a `start` in a pod, launched from where the run could not be seen; the usual value counts as not given.

    Raises:
        ConfigError, StorageError: as `complete`.
    """
    if given["continue_from"] == AUTO:
        return dict(given)
    usual = asdict(Options())
    chosen = {name: value for name, value in given.items() if value != usual[name]}
    return {**given, **_known(read_options(find_run(root, given["continue_from"]).path)), **chosen}


def _known(before: RunOptions) -> dict[str, Any]:
    """Without those of a later version."""
    return {name: value for name, value in before.options.items() if name in OPTIONS}


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
    added = [f"{flag(name)}={value}" for name, value in options.items() if name not in given]
    return [*first, *words, *added]


def _options_in(words: Sequence[str]) -> dict[str, str]:
    """Our options among the words of a command: name → value."""
    found: dict[str, str] = {}
    for place, word in enumerate(words):
        name, has_value, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and (name := name.replace("-", "_")) in OPTIONS:
            found[name] = value if has_value else next(iter(words[place + 1 : place + 2]), "")
    return found
