"""`hyperpod-lora reproduce`: the command that makes a model again, and every kind of change since."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from steps.flow.lineage import locked_libraries
from steps.flow.metaflow_internals import code_version
from steps.flow.training import Inputs
from steps.library_versions import installed_versions
from steps.prepare.stage import prepare
from steps.protocol.run_options import RunOptions
from steps.protocol.rundir import RunDir
from steps.settings.config import parse_options, parse_settings
from steps.settings.options import Options
from steps.settings.places import project_root
from steps.settings.resolve import resolve
from tests.cli.cli_harness import call
from tests.prepare.prepare_data import base_at, questions, tiny_model, write_lines

__all__ = ["tiny_model"]


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> RunDir:
    """A run with prepared data and a merged model, just made."""
    config, data = tmp_path / "config.yaml", write_lines(tmp_path / "a b.jsonl", questions(20))
    config.write_text(f"storage: {{root: {tmp_path}, cache: {tmp_path / 'cache'}, min_free_gib: 0}}\n")
    options = {"model": "tiny", "dataset": str(data), "lora_rank": 4}
    plan = resolve(
        parse_settings({"storage": {"root": str(tmp_path), "cache": str(tmp_path / "cache"), "min_free_gib": 0}}),
        parse_options(options),
    )
    run, base = RunDir(tmp_path / "LoraFlow" / "7"), base_at(tiny_model)
    Inputs(plan, base, prepare(plan, base, run, cache=tmp_path / "cache")).save(run)
    RunOptions({**asdict(Options()), **options}, str(config), "7").save(run.path)
    write_lineage(run)
    return run


def write_lineage(run: RunDir, **changed: Any) -> None:
    folder = run.path / "merged-1"
    folder.mkdir(exist_ok=True)
    root = project_root()
    made = {"code": {**code_version(root), **locked_libraries(root)}, "libraries": installed_versions(), **changed}
    (folder / "lineage.json").write_text(json.dumps(made))


def ask(run: RunDir, *words: str) -> Result:
    return call("reproduce", "--root", run.path.parents[1], "7", *words)


def test_the_command_has_config_and_options_that_are_not_the_usual_ones(run: RunDir) -> None:
    told = ask(run)
    root = run.path.parents[1]
    assert told.exit_code == 0, told.output
    first, *_, last = told.output.splitlines()
    assert first.endswith(f"run --config {root}/config.yaml --model=tiny '--dataset={root}/a b.jsonl' --lora-rank=4")
    assert last == "nothing has changed since"
    assert json.loads(ask(run, "--json").output) == {"command": first, "changed": []}


def test_changed_data_settings_and_libraries_are_named(run: RunDir) -> None:
    root = run.path.parents[1]
    write_lines(root / "a b.jsonl", questions(21))
    with (root / "config.yaml").open("a") as file:
        file.write("checkpoints: {keep: 9}\n")
    write_lineage(run, libraries={**installed_versions(), "torch": "1.0"})
    told = ask(run)
    assert told.exit_code == 1
    for words in ("libraries.torch: 1.0 → ", "config.checkpoints.keep: 3 → 9", "data.a b.jsonl: "):
        assert words in told.output
    assert "code." not in told.output


def test_what_cannot_be_compared_is_said(run: RunDir) -> None:
    root = run.path.parents[1]
    (root / "a b.jsonl").unlink()
    (root / "config.yaml").unlink()
    write_lineage(run, code={"digest": "other"}, libraries=None)
    told = ask(run)
    assert told.exit_code == 1
    for words in ("code.digest: other → ", "libraries: not told by that run", "config: ", "data: cannot be looked at"):
        assert words in told.output
    (run.path / "merged-1" / "lineage.json").unlink()
    assert "code: not known: that run has no merged model" in ask(run).output
    (run.path / "options.json").unlink()
    assert "does not tell what it was started with" in ask(run).output
