"""`--continue-from`: that run's options are the defaults, given ones win; what makes another training is named by its setting."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError, StorageError
from steps.flow.continuing import complete, complete_in_pod, complete_words, find_run, keep
from steps.flow.same_training import check_settings, differences
from steps.flow.training import Inputs
from steps.protocol.run_options import how_to_continue, how_to_resume, read_options
from steps.protocol.rundir import RunDir
from steps.settings.config import parse_options
from steps.settings.options import OPTIONS
from steps.settings.plan import Training
from tests.shared.sample_records import BASE, plan_of, prepared_of


def make_run(root: Path, *, config: str = "", **options: Any) -> RunDir:
    """A run that has prepared its data."""
    run = RunDir(root / "LoraFlow" / "17")
    plan = plan_of(**options)
    keep(run, parse_options({"model": "tiny", "dataset": "orders", **options}), plan, config=config)
    Inputs(plan, BASE, prepared_of()).save(run)
    return run


def make_config(folder: Path, **sections: Any) -> Path:
    """With its runs below the folder; JSON is YAML too."""
    config = folder / "my config.yaml"
    config.write_text(json.dumps({"storage": {"root": str(folder / "runs")}} | sections))
    return config


def test_the_options_of_that_run_are_the_defaults_and_given_ones_win(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", lora_rank=4, seed=7, micro_batch=2, lora_dropout=0.1, max_steps=12)
    config = make_config(tmp_path, run={"seed": 3})
    given = {"continue_from": "17", "micro_batch": "1", "lora_dropout": "0.0"}
    chosen, options = complete(config, given)
    assert chosen == config
    assert {name: options[name] for name in ("model", "lora_rank", "seed", "max_steps")} == {
        "model": "tiny",
        "lora_rank": 4,
        "seed": 7,
        "max_steps": 12,
    }
    assert (options["micro_batch"], options["lora_dropout"]) == ("1", "0.0"), "also where it is the usual default"
    assert "dry_run" not in options
    assert set(options) == {*OPTIONS} - {"dry_run"}


def test_without_it_a_command_means_what_it_says(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert complete(config, {"seed": "5"}) == (config, {"seed": "5"})


def test_the_config_of_that_run_is_its_default_too(tmp_path: Path) -> None:
    config = make_config(tmp_path, deadlines={"grace_s": 7})
    run = make_run(tmp_path / "runs", config=str(config))
    chosen, _ = complete(None, {"continue_from": str(run.path)})
    assert chosen == config
    assert shlex.split(how_to_continue(run.path, "--dry-run"))[1:] == [
        *("run", "--continue-from", str(run.path), "--dry-run")
    ]


def test_a_run_that_went_on_in_the_same_directory_is_the_one_to_resume(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    assert shlex.split(how_to_resume(run.path))[1:] == ["resume", "17"], "an earlier version's"
    keep(run, parse_options({"model": "tiny"}), plan_of(), config="", run_id="23")
    assert shlex.split(how_to_resume(run.path))[1:] == ["resume", "23"]
    (run.path / "options.json").write_text("{")
    assert shlex.split(how_to_resume(run.path))[1:] == ["resume", "17"]


def test_a_run_on_a_cluster_is_completed_where_it_can_be_seen(tmp_path: Path) -> None:
    cluster = {"namespace": "n", "image": "i", "claim": "c", "mount_path": str(tmp_path)}
    storage = {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")}
    config = make_config(tmp_path, launcher={"kind": "pytorchjob"}, cluster=cluster, storage=storage)
    given = {"continue_from": "17", "seed": "5"}
    assert complete(config, given) == (config, given)
    make_run(tmp_path / "runs", lora_rank=4, micro_batch=2)
    usual = {"continue_from": "17", "lora_rank": 0, "micro_batch": 1, "model": "smollm2-135m"}
    found = complete_in_pod(str(tmp_path / "runs"), usual)
    assert {name: found[name] for name in usual} == {**usual, "lora_rank": 4, "model": "tiny"}
    assert complete_in_pod("nowhere", {"continue_from": "auto"}) == {"continue_from": "auto"}


def test_the_flows_own_command_line_is_completed_in_the_same_way(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_run(tmp_path / "runs", lora_rank=4, seed=7)
    words = ["--no-pylint", "--config", "config", str(config), "run", "--continue-from", "17", "--seed=9"]
    found = complete_words(words)
    assert found[: len(words)] == words
    assert {"--lora-rank=4", "--model=tiny"} <= set(found)
    assert not [word for word in found[len(words) :] if word.startswith(("--seed", "--continue", "--dry-run"))]
    for other in (["show"], ["run", "--seed", "3"], ["resume", "--origin-run-id", "17"]):
        assert complete_words(other) == other


def test_what_was_named_by_a_relative_path_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "orders").mkdir()
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs", dataset="rows.jsonl")
    assert read_options(run.path).options["dataset"] == str(tmp_path / "rows.jsonl")
    assert read_options(make_run(tmp_path / "others").path).options["dataset"] == "orders", "a preset's name stays"
    assert read_options(run.path).options["precision"] == "fp32", "what was chosen stays, on another machine too"


def test_an_older_run_has_no_options_and_damaged_ones_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    config = make_config(tmp_path)
    (run.path / "options.json").unlink()
    assert complete(config, {"continue_from": "17"})[1] == {"continue_from": "17"}
    (run.path / "options.json").write_text('{"schema": "later"}')
    with pytest.raises(StorageError, match=r"options\.json is damaged, or of a later version"):
        complete(config, {"continue_from": "17"})
    with pytest.raises(ConfigError, match=r"no run found in .*the newest runs there: none"):
        find_run(str(tmp_path / "elsewhere"), "17")


def test_a_run_is_found_by_id_flow_and_id_or_path(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    for given in ("17", "LoraFlow/17", str(run.path)):
        assert find_run(str(tmp_path / "runs"), given) == run


CHANGES: dict[str, Any] = {
    "--learning-rate": 0.5,
    "--lora-rank": 3,
    "--lora-dropout": 0.25,
    "--lora-targets": "q_proj",
    "--method": "dora",
    "--seed": 1,
    "--sequence-length": 64,
    "--max-steps": 9,
    "--max-rows": 50,
    "--global-batch": 8,
    "--columns": "prompt=a,completion=b",
    "--dataset": "alpaca",
    "--chat-template-kwargs": '{"thinking": false}',
    "--weight-decay": 0.1,
    "--scheduler": "linear",
    "--warmup-ratio": 0.2,
    "--max-grad-norm": 2.0,
    "--precision": "bf16",
    "--validation-fraction": 0.3,
}


@pytest.mark.parametrize("option", CHANGES)
def test_what_makes_another_training_is_named_as_a_person_names_it(option: str) -> None:
    name = option.removeprefix("--").replace("-", "_")
    found = differences(plan_of(), plan_of(**{name: CHANGES[option]}))
    assert option in {problem.path for problem in found}
    assert all("start a new run without --continue-from" in problem.message for problem in found)


def test_every_value_of_the_identity_is_compared() -> None:
    """A training's value that `differences` would pass over has another name there, or was forgotten."""
    named = {name.removeprefix("--").replace("-", "_") for name in CHANGES} | {"quantization", "lora"}
    plan = plan_of(quantization="4bit", weight_decay=0.1)
    assert set(plan.training.identity_values()) <= named
    assert set(Training.model_fields) - {"micro_batch", "gradient_checkpointing", "sharding"} <= named


def test_what_decides_the_result_of_the_validation_is_named_only_where_it_decides() -> None:
    usual, other = plan_of(), plan_of({"validation": {"every_steps": 3}})
    assert differences(usual, other) == []
    best, finer = ({"keep": "best", "every_steps": steps} for steps in (5, 3))
    (found,) = differences(plan_of({"validation": best}), plan_of({"validation": finer}))
    assert str(found).startswith("validation.every_steps: that run has 5, this one 3")


def test_where_and_how_it_runs_may_differ() -> None:
    other = plan_of({"deadlines": {"grace_s": 9}}, processes=2, micro_batch=2, gradient_checkpointing="on")
    assert differences(plan_of(), other) == []


def test_a_training_is_compared_before_anything_is_fetched_prepared_data_is_not(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "runs"), plan_of(seed=1)
    check_settings(other, run)
    (run.path / "train-abc").mkdir()
    (run.path / "train-abc" / "spec.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^--seed: that run has 42, this one 1; leave it out, or start a new run"):
        check_settings(other, run)
    check_settings(plan_of(), run)
    (run.path / "plan.json").write_text("{}")
    check_settings(other, run)
