"""Layers spread over two stages: the same training as on one core, the same export, the same resume."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steps.protocol.prepared import PreparedRows
from steps.train.neuron.consolidate import ADAPTER, consolidate_checkpoint
from tests.neuron.neuron_harness import EXACT, PATIENCE_S, Training, write_base
from tests.neuron.test_neuron_learns import last_validation, plain_loss, plain_model, tuned_loss
from tests.neuron.test_neuron_parallel import adapter_weights, gradients, largest_difference

SUBGROUPS = pytest.mark.skipif(
    os.environ.get("PJRT_DEVICE") == "CPU" and not os.environ.get("NEURON_TEST_SUBGROUPS"),
    reason="stages that each have a group of their own need collectives that not all ranks join; a stand-in for the cores "
    "may lack them: NEURON_TEST_SUBGROUPS=1 says that this one has them",
)
TWO_STAGES: dict[str, Any] = EXACT | {"pipeline_parallel": 2}


@pytest.mark.parametrize(
    ("processes", "changes"),
    [(2, {}), pytest.param(4, {"tensor_parallel": 2}, marks=SUBGROUPS), (4, {"micro_batch": 1})],
    ids=["PP=2", "PP=2, TP=2", "PP=2, DP=2"],
)
def test_two_stages_train_the_same_adapter_as_one_core(
    processes: int,
    changes: dict[str, Any],
    uninterrupted: Callable[[str], Training],
    new_training: Callable[..., Training],
    base: Path,
) -> None:
    one, two = uninterrupted("fp32"), new_training(**TWO_STAGES, **changes)
    two.run(processes=processes)
    found = {
        "gradients of step 1": largest_difference(gradients(one, 1), gradients(two, 1)),
        "gradients of steps 1 to 4": largest_difference(gradients(one, 4), gradients(two, 4)),
        "weights after 8 steps": largest_difference(adapter_weights(one), adapter_weights(two)),
    }
    print("largest relative difference:", ", ".join(f"{what} {worst:.1e}" for what, worst in found.items()))
    assert max(found.values()) < 1e-5  # without weight decay: 4e-4
    for key in ("loss", "grad_norm"):
        assert list(two.values(key).values()) == pytest.approx(list(one.values(key).values()), rel=1e-4)
    assert tuned_loss(two, base) == pytest.approx(last_validation(two), abs=5e-6)


@pytest.mark.parametrize(
    ("packed", "shape"),
    [
        (False, {}),
        (True, {}),
        (False, {"tie_word_embeddings": True, "num_hidden_layers": 3}),
        (False, {"model_type": "qwen3", "head_dim": 8}),
    ],
    ids=["padded", "packed", "tied embeddings, 3 layers on 2 stages", "qwen3"],
)
def test_the_loss_on_two_stages_is_that_of_each_sample_alone(
    packed: bool, shape: dict[str, Any], new_training: Callable[..., Training], tmp_path: Path
) -> None:
    write_base(tmp_path / "base", **shape)
    rows = [[9, 14, 11], [20, 17], [16, 8, 7, 12]] if packed else [[13], [30], [47]]
    data = {"rows": rows, "order": [0, 1, 2, 0]}
    training = new_training(data=data, packed=packed, steps=1, base_path=str(tmp_path / "base"), **TWO_STAGES)
    training.run(processes=2)
    prepared = PreparedRows.open(Path(training.spec.prepared_path))
    model = plain_model(tmp_path / "base")
    expected = plain_loss(model, (prepared.row(index) for index in (0, 1, 2, 0)))
    assert training.values("loss")[1] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["o_proj", "embed_tokens"]], ids=["q and v alone", "o and embeddings"]
)
def test_the_exported_adapter_is_what_two_stages_trained(
    targets: list[str], new_training: Callable[..., Training], base: Path
) -> None:
    training = new_training(lora={"targets": targets}, **TWO_STAGES)
    training.run(processes=2)
    assert tuned_loss(training, base) == pytest.approx(last_validation(training), abs=5e-6)
    losses = training.values("loss")
    assert losses[8] < losses[1] - 0.05


def test_gradient_checkpointing_on_two_stages_changes_no_loss(
    uninterrupted: Callable[[str], Training], new_training: Callable[..., Training]
) -> None:
    stored, recomputed = uninterrupted("fp32"), new_training(gradient_checkpointing=True, **TWO_STAGES)
    recomputed.run(processes=2)
    losses = [list(training.values("loss").values()) for training in (stored, recomputed)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-6)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_training_that_ended_before_its_export_exports_what_it_saved(
    keep: str, new_training: Callable[..., Training], tmp_path: Path
) -> None:
    changes = {"keep": keep, "validation_every": 2, "learning_rate": 1e-12 if keep == "best" else 1e-2}
    training = new_training(**TWO_STAGES, **changes)
    training.run(processes=2)
    again = training.fork(tmp_path / "again", step=8)
    again.run(attempt=2, processes=2)
    assert not again.values("loss", attempt=2)
    assert (again.adapter(2) / ADAPTER).read_bytes() == (training.adapter() / ADAPTER).read_bytes()
    out = tmp_path / "by-hand"
    out.mkdir()
    consolidate_checkpoint(training.checkpoint(8), out, best=keep == "best")
    assert (out / ADAPTER).read_bytes() == (training.adapter() / ADAPTER).read_bytes()


def test_a_checkpoint_of_two_stages_goes_on_with_more_replicas_but_not_on_one(
    uninterrupted: Callable[[str], Training], tmp_path: Path
) -> None:
    whole = uninterrupted("bf16, PP=2")
    fewer = whole.fork(tmp_path / "fewer", step=4)
    fewer.spec = fewer.spec.model_copy(update={"pipeline_parallel": 1})
    assert fewer.start(2, processes=1).wait(timeout=PATIENCE_S) != 0
    (failure,) = fewer.failures(2)
    assert "it was saved with pipeline parallel 2, this is 1" in failure.message
    more = whole.fork(tmp_path / "more", step=4)
    more.run(attempt=2, processes=4)
    for key in ("loss", "grad_norm"):
        expected, found = whole.values(key), more.values(key, attempt=2)
        assert list(found) == [5, 6, 7, 8]
        worst = max(abs(found[step] - expected[step]) / expected[step] for step in found)
        print(f"largest relative difference of {key} with two replicas: {worst:.1e}")
        assert worst < 1e-3
