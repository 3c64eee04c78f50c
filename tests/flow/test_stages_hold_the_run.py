"""Each stage shows everybody that it uses the run directory for as long as it works."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from steps.errors import JobCancelled, LoraFlowError
from steps.flow import metaflow_internals, stages
from steps.job.agent.in_use import BETWEEN, users_of
from steps.job.cancel import request_of_flows
from steps.protocol.rundir import RunDir

ANY = MagicMock()
CALLS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "prepare": ("steps.prepare.stage.prepare", lambda run: stages.prepare({}, {}, run)),
    "train": ("steps.train.stage.collect", lambda run: stages.train(ANY, {}, {}, {}, run)),
    "merge": ("steps.merge.stage.merge", lambda run: stages.merge({}, {}, {}, run, {})),
    "evaluate": ("steps.evaluate.handover.check_merged", lambda run: stages.evaluate(ANY, {}, [{}] * 4, run, {})),
    "compile": ("steps.flow.neuron_jobs.compile_merged", lambda run: stages.compile_merged(ANY, {}, {}, run)),
}


@pytest.mark.parametrize("stage", CALLS)
def test_a_stage_holds_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    door, call = CALLS[stage]
    seen: list[str] = []

    def work(*_: object, **__: object) -> None:
        seen.extend(user.what for user in users_of(tmp_path))
        raise LoraFlowError("seen enough")

    names = (
        "Plan",
        "BaseModel",
        "PreparedData",
        "Adapter",
        "MergedModel",
        "Inputs",
        "lineages",
        "cache_folder",
        "reporting",
    )
    for name in names:
        monkeypatch.setattr(stages, name, MagicMock())
    stages.Inputs.return_value.job.return_value = (ANY, ANY)  # type: ignore[attr-defined]
    module, _, function = door.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), function, work)
    monkeypatch.setattr(metaflow_internals, "flow_id", lambda: "17")
    with pytest.raises(LoraFlowError, match="seen enough"):
        call(str(tmp_path))
    assert seen == [stage]
    (left,) = users_of(tmp_path)
    assert (left.what, left.flow) == (BETWEEN, "17")
    stages.end(str(tmp_path))
    assert users_of(tmp_path) == []


@pytest.mark.parametrize("stage", ["prepare", "merge", "evaluate"])
def test_a_stage_does_not_begin_in_a_flow_that_was_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(metaflow_internals, "flow_id", lambda: "17")
    request_of_flows(RunDir(tmp_path), ["17"])
    with pytest.raises(JobCancelled), stages.at_work(tmp_path, stage):
        raise AssertionError("it began")
