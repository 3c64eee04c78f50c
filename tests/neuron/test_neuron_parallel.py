"""Tensor parallelism trains the same adapter as one core, and exports the one that it trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from neuron_harness import PATIENCE_S, Training
from test_neuron_learns import EXACT, last_validation, tuned_loss

from steps.checkpoints import directories
from steps.train.neuron_consolidate import ADAPTER, consolidate_checkpoint


def adapter_weights(training: Training) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(training.adapter() / ADAPTER)
    return found


@pytest.fixture
def on_one_core(new_training: Callable[..., Training]) -> Training:
    training = new_training("one", **EXACT)
    training.run()
    return training


def test_two_cores_train_the_same_adapter_as_one(
    on_one_core: Training, new_training: Callable[..., Training], base: Path
) -> None:
    training = new_training("two", tensor_parallel=2, **EXACT)
    training.run(processes=2)
    one, two = adapter_weights(on_one_core), adapter_weights(training)
    assert one.keys() == two.keys()
    worst = max(((two[name] - one[name]).norm() / one[name].norm()).item() for name in one)
    print(f"largest relative difference of a weight after 8 steps: {worst:.2e}")
    assert worst < 1e-3
    for key in ("loss", "grad_norm"):
        assert list(training.values(key).values()) == pytest.approx(list(on_one_core.values(key).values()), rel=1e-4)
    assert tuned_loss(training, base) == pytest.approx(last_validation(training), abs=5e-6)
    assert tuned_loss(on_one_core, base) == pytest.approx(last_validation(on_one_core), abs=5e-6)


@pytest.mark.parametrize(
    ("targets", "processes"),
    [(["all-linear"], 4), (["q_proj", "v_proj"], 2), (["o_proj", "down_proj", "embed_tokens"], 4)],
    ids=["replicated KV heads", "q and v alone", "o alone under replicated KV, and embeddings"],
)
def test_the_exported_adapter_is_the_trained_model(
    targets: list[str], processes: int, new_training: Callable[..., Training], base: Path, tmp_path: Path
) -> None:
    training = new_training(tensor_parallel=processes, lora={"targets": targets}, **EXACT)
    training.run(processes=processes)
    assert tuned_loss(training, base) == pytest.approx(last_validation(training), abs=5e-6)
    out = tmp_path / "by-hand"
    out.mkdir()
    consolidate_checkpoint(directories(training.spec.place.checkpoints)[0], out)
    assert (out / ADAPTER).read_bytes() == (training.adapter() / ADAPTER).read_bytes()


def test_adapters_that_drift_apart_are_never_saved(
    new_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURON_TEST_UNDO", "sum")
    training = new_training(tensor_parallel=2)
    assert training.start(1, processes=2).wait(timeout=PATIENCE_S) != 0
    failures = training.failures()
    assert failures[0].exception == "ReplicaError"
    assert "at step 4 copies of the same weights are not equal" in failures[0].message
    assert not list(training.spec.place.checkpoints.glob("*/COMPLETE.json"))
