"""Each stage shows everybody that it uses the run directory for as long as it works."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from steps.errors import LoraFlowError
from steps.flow import stages
from steps.job.agent.in_use import users_of

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

    for name in ("Plan", "BaseModel", "PreparedData", "Adapter", "MergedModel", "Inputs", "lineages", "cache_folder"):
        monkeypatch.setattr(stages, name, MagicMock())
    stages.Inputs.return_value.job.return_value = (ANY, ANY)  # type: ignore[attr-defined]
    module, _, function = door.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), function, work)
    with pytest.raises(LoraFlowError, match="seen enough"):
        call(str(tmp_path))
    assert seen == [stage]
    assert users_of(tmp_path) == []
