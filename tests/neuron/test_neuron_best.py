"""The best adapter survives a restart; compiled graphs and precompile jobs go through the same worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from steps.train.neuron.consolidate import ADAPTER, consolidate_checkpoint
from steps.train.neuron.precompile import precompile_spec
from tests.neuron.neuron_harness import PATIENCE_S, Training


def test_the_best_adapter_is_remembered_over_a_restart(new_training: Callable[..., Training], tmp_path: Path) -> None:
    """At such a rate no loss changes, so the first validation's stays the best: only its checkpoint can tell after a restart."""
    changes = {"keep": "best", "validation_every": 2, "learning_rate": 1e-12, "compile_cache": str(tmp_path / "graphs")}
    training = new_training(precision="fp32", **changes)
    training.kill_after(5)
    training.run(attempt=2)
    finished = next(event for event in training.events(2) if event.kind == "finished")
    assert finished.data["result_step"] == 2
    adapters = {}
    for name, step, best in (("best", 4, True), ("last", 8, False)):
        (tmp_path / name).mkdir()
        consolidate_checkpoint(training.checkpoint(step), tmp_path / name, best=best)
        adapters[name] = (tmp_path / name / ADAPTER).read_bytes()
    assert (training.adapter(2) / ADAPTER).read_bytes() == adapters["best"] != adapters["last"]


def test_a_precompile_job_takes_few_steps_and_saves_nothing(new_training: Callable[..., Training]) -> None:
    spec = new_training(tensor_parallel=2).spec
    job = Training(precompile_spec(spec))
    job.run(processes=2)
    assert list(job.values("loss")) == [1, 2, 3]
    assert {event.kind for event in job.events()} >= {"started", "model_loaded", "first_step", "validation"}
    assert not {"checkpoint", "finished"} & {event.kind for event in job.events()}
    assert not job.spec.place.checkpoints.exists()
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
