"""The sweep's steps as plain functions: many plans at once, each trained by `stages`, the best one handed on.

Called by `flows/sweep_flow.py` only. A branch has a run directory of its own, `<run id>-<number>`, so every command works on it;
the prepared data lies in the sweep's, once for all branches that read the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import ConfigError, JobPermanentError, JobRetriesExhausted, LoraFlowError, Mistakes, Problem
from steps.flow import stages
from steps.flow.deciding import bring, cache_folder, check_cluster, decide, directory_of
from steps.flow.sweep import board, grid
from steps.flow.terminal import say
from steps.flow.training import Inputs
from steps.plain_text import counted
from steps.protocol.records import BaseModel, PreparedData
from steps.protocol.rundir import RunDir
from steps.settings.config import Settings, parse_settings
from steps.settings.plan import Plan

if TYPE_CHECKING:
    from steps.flow.decorator import JobHandle

Branch = dict[str, Any]
"""name (what it varies), options, plan, base, run_dir; then prepared."""
GIVEN_UP = (JobPermanentError, JobRetriesExhausted)
"""A branch that ends so (it diverged, it does not fit the memory) is a row of the leaderboard; the others go on."""


def start(text: str, raw_settings: Mapping[str, Any]) -> tuple[list[Branch], str]:
    """Every branch decided and looked at, its base model here: branches, and the sweep's run directory.

    Raises:
        LoraFlowError: every mistake in every branch that can be known before any weight is fetched, at once.
    """
    from steps.prepare.look import look

    settings = parse_settings(dict(raw_settings))
    options = grid.read_sweep(text)
    names = grid.varied(options)
    decided = _decide_all(settings, options, names)
    check_cluster(decided[0][0])
    for dataset in {plan.dataset.model_dump_json(): plan.dataset for plan, _ in decided}.values():
        look(dataset, cache_folder(decided[0][0]))
    run = directory_of(decided[0][0])
    branches = [
        {
            "name": grid.label(chosen, names),
            "options": chosen,
            "plan": plan.model_dump(mode="json"),
            "base": bring(plan, config).to_dict(),
            "run_dir": f"{run.path}-{number:02}",
        }
        for number, (chosen, (plan, config)) in enumerate(zip(options, decided, strict=True), start=1)
    ]
    say(f"sweep: {counted(len(branches), 'branch', 'branches')} over {', '.join(names)}")
    return branches, str(run.path)


def _decide_all(
    settings: Settings, options: Sequence[grid.Options], names: list[str]
) -> list[tuple[Plan, dict[str, Any]]]:
    mistakes, decided = Mistakes(), []
    for chosen in options:
        try:
            decided.append(decide(settings, chosen))
        except ConfigError as error:
            name = grid.label(chosen, names)
            mistakes.problems += [Problem(f"{item.path} ({name})", item.message) for item in error.problems]
    mistakes.tell()
    return decided


def prepare(branches: Sequence[Branch], run_dir: str) -> list[Branch]:
    """The branches with their prepared data, which those share that read the same rows in the same way.

    Raises:
        LoraFlowError: as `stages.prepare`; two branches that are the same training.
    """
    done: list[Branch] = []
    for branch in branches:
        say(f"branch {branch['name']}")
        plan, prepared = stages.prepare(branch["plan"], branch["base"], run_dir)
        found = {**branch, "plan": plan, "prepared": prepared}
        _inputs(found).save(RunDir(Path(branch["run_dir"])))
        done.append(found)
    _refuse_twins(done)
    sets = len({branch["prepared"]["path"] for branch in done})
    say(f"{counted(sets, 'prepared data set')} for {counted(len(done), 'branch', 'branches')}, in {run_dir}")
    return done


def _inputs(branch: Branch) -> Inputs:
    return Inputs(
        Plan.model_validate(branch["plan"]),
        BaseModel.from_dict(branch["base"]),
        PreparedData.from_dict(branch["prepared"]),
    )


def _refuse_twins(branches: Sequence[Branch]) -> None:
    seen: dict[str, str] = {}
    for branch in branches:
        identity = _inputs(branch).job(RunDir(Path(branch["run_dir"])))[0].identity
        if identity in seen:
            what = f"the branches {seen[identity]!r} and {branch['name']!r} are the same training"
            raise ConfigError([Problem("sweep", what)])
        seen[identity] = branch["name"]


def train(handle: JobHandle, branch: Branch) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """One branch trained: its adapter, the adapter's files, and why it was given up (then the others are empty)."""
    say(f"branch {branch['name']}")
    try:
        adapter, files = stages.train(handle, branch["plan"], branch["base"], branch["prepared"], branch["run_dir"])
    except GIVEN_UP as error:
        say(f"branch {branch['name']} is given up: {error}")
        return {}, {}, str(error)
    return adapter, files, ""


def choose(card: Any, ended: Sequence[tuple[Branch, dict[str, Any], str]]) -> tuple[list[dict[str, Any]], int]:
    """The leaderboard, best first, also on the card; and which of the branches has won.

    Raises:
        LoraFlowError: no branch came to its end.
    """
    from steps.flow.cards.metaflow_cards import show_page

    rows = board.rank([board.row(number, *branch) for number, branch in enumerate(ended)])
    show_page(card, "leaderboard.html", board.view(rows, [branch for branch, _, _ in ended]))
    for line in board.lines(rows):
        say(line)
    if rows[0]["failed"]:
        raise LoraFlowError(f"none of {counted(len(rows), 'branch', 'branches')} came to its end: {rows[0]['failed']}")
    return rows, rows[0]["branch"]


def end(branch: Branch) -> None:
    """Say which branch has won, and where it is."""
    say(f"the winner: {branch['name']}, in {branch['run_dir']}")
