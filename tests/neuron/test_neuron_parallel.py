"""Tensor parallelism trains the same adapter as one core, and exports the one that it trained."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from steps.protocol.checkpoints import directories
from steps.train.neuron.cache import count_graphs
from steps.train.neuron.consolidate import ADAPTER, AdapterShape, consolidate, consolidate_checkpoint
from tests.neuron.neuron_harness import EXACT, PATIENCE_S, Training
from tests.neuron.test_neuron_learns import last_validation, merged_loss, tuned_loss


def adapter_weights(training: Training) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(training.adapter() / ADAPTER)
    return found


def gradients(training: Training, step: int) -> dict[str, Any]:
    """Adam's first moments, put together as the adapter is: after step 1 the gradients (× 0.1), later their decaying sum."""
    from safetensors.torch import load_file

    folder = training.checkpoint(step)
    shape = AdapterShape.read(folder)
    held: list[dict[str, Any]] = [{} for _ in range(shape.tensor_parallel)]
    for (tp, mine), pp in product(enumerate(held), range(shape.pipeline_parallel)):
        found = load_file(folder / f"optimizer-dp00-tp{tp:02d}-pp{pp:02d}.safetensors")
        mine |= {name.removeprefix("exp_avg/"): tensor for name, tensor in found.items()}
    return consolidate(held, shape)


def largest_difference(one: dict[str, Any], two: dict[str, Any]) -> float:
    """Of two tensors of one name, relative to the first's norm; a zero one must be zero in both."""
    assert one.keys() == two.keys()
    norms = {name: tensor.norm().item() for name, tensor in one.items()}
    assert not any(two[name].any() for name, norm in norms.items() if norm == 0)
    return max((two[name] - one[name]).norm().item() / norm for name, norm in norms.items() if norm)


def test_two_cores_train_the_same_adapter_as_one(uninterrupted: Callable[[str], Training], base: Path) -> None:
    one, two = uninterrupted("fp32"), uninterrupted("fp32, TP=2")
    found = {
        "gradients of step 1": largest_difference(gradients(one, 1), gradients(two, 1)),
        "gradients of steps 1 to 4": largest_difference(gradients(one, 4), gradients(two, 4)),
        "weights after 8 steps": largest_difference(adapter_weights(one), adapter_weights(two)),
    }
    print("largest relative difference:", ", ".join(f"{what} {worst:.1e}" for what, worst in found.items()))
    assert found["gradients of step 1"] < 1e-5
    assert max(found.values()) < 1e-3
    for key in ("loss", "grad_norm"):
        assert list(two.values(key).values()) == pytest.approx(list(one.values(key).values()), rel=1e-4)
    for training in (one, two):
        assert tuned_loss(training, base) == pytest.approx(last_validation(training), abs=5e-6)
        print(
            f"loss of the exported adapter: {tuned_loss(training, base):.7f}, of the model: {last_validation(training):.7f}"
        )


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
    assert merged_loss(training, base, tmp_path / "merging") == pytest.approx(last_validation(training), abs=5e-6)
    out = tmp_path / "by-hand"
    out.mkdir()
    consolidate_checkpoint(directories(training.spec.place.checkpoints)[0], out)
    assert (out / ADAPTER).read_bytes() == (training.adapter() / ADAPTER).read_bytes()


def test_ranks_in_another_order_than_the_librarys_end_the_attempt(
    new_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two replicas would read the other's rows, and name its files after the other."""
    monkeypatch.setenv("NEURON_TEST_UNDO", "place")
    training = new_training(global_batch=8, micro_batch=1)
    assert training.start(1, processes=2).wait(timeout=PATIENCE_S) != 0
    failure = training.failures()[0]
    assert (failure.exception, failure.failure_class) == ("ConfigError", "config")
    dp = failure.rank
    assert (
        f"this rank at Place(dp={1 - dp}, tp=0, data_parallel=2, pp=0), the library says Place(dp={dp}"
        in failure.message
    )


def test_adapters_that_drift_apart_are_never_saved(
    new_training: Callable[..., Training], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was compiled is handed on all the same: a graph of this node's cache plays one."""
    compiled = tmp_path / "node" / "neuronxcc-2.21" / "MODULE_1"
    compiled.mkdir(parents=True)
    for name in ("model.neff", "model.done"):
        (compiled / name).touch()
    monkeypatch.setenv("NEURON_COMPILE_CACHE_URL", str(tmp_path / "node"))
    monkeypatch.setenv("NEURON_TEST_UNDO", "sum")
    training = new_training(tensor_parallel=2, compile_cache=str(tmp_path / "shared"))
    assert training.start(1, processes=2).wait(timeout=PATIENCE_S) != 0
    failures = training.failures()
    assert failures[0].exception == "ReplicaError"
    assert "at step 4 copies of the same weights are not equal" in failures[0].message
    assert not list(training.spec.place.checkpoints.glob("*/COMPLETE.json"))
    assert count_graphs(str(tmp_path / "shared")) == 1
