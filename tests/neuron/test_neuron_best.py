"""The best adapter survives a restart; compiled graphs and precompile jobs go through the same worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from neuron_harness import PATIENCE_S, Training
from test_neuron_learns import EXACT, plain_loss, plain_model

from steps.prepared import PreparedRows
from steps.train.neuron_cache import precompile_spec


def test_the_best_adapter_is_remembered_over_a_restart(
    new_training: Callable[..., Training], base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    changes = {"keep": "best", "validation_every": 1, "learning_rate": 30.0, "compile_cache": str(tmp_path / "graphs")}
    training = new_training(**EXACT | changes)
    training.kill_after(5)
    training.run(attempt=2)
    losses = {
        event.step: event.data["loss"]
        for attempt in (1, 2)
        for event in training.events(attempt)
        if event.kind == "validation"
    }
    assert set(losses) == set(range(1, 9))
    assert min(losses, key=losses.__getitem__) == 1, "at such a rate only the first step, whose rate is 0, does no harm"
    assert losses[8] > losses[1] + 0.1
    held_out = PreparedRows.open(Path(training.spec.prepared_path)).validation
    tuned = PeftModel.from_pretrained(plain_model(base), training.adapter(2)).eval()
    assert plain_loss(tuned, (held_out.row(index) for index in range(5))) == pytest.approx(
        min(losses.values()), abs=2e-5
    )


def test_a_precompile_job_takes_few_steps_in_its_own_directory(new_training: Callable[..., Training]) -> None:
    spec = new_training(tensor_parallel=2).spec
    job = Training(precompile_spec(spec))
    job.run(processes=2)
    assert list(job.values("loss")) == [1, 2, 3]
    assert not Path(spec.directory).exists()


def test_a_base_that_cannot_be_loaded_is_named(
    new_training: Callable[..., Training], base: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((base / "config.json").read_bytes())
    training = new_training(base_path=str(empty))
    assert training.start(1, processes=1).wait(timeout=PATIENCE_S) != 0
    (failure,) = training.failures()
    assert (failure.exception, failure.failure_class) == ("ModelError", "config")
    assert f"cannot load the base model in {empty}" in failure.message
