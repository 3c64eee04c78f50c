"""Every model type that the neuron backend takes trains what the torch backend trains, from the same start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steps.train.neuron.planning.refusals import MODEL_TYPES
from tests.neuron.neuron_harness import EXACT, Training, write_base
from tests.neuron.test_neuron_learns import last_validation, tuned_loss

ALIKE = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
"""Targets with a lora_A of their own on both backends."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_each_model_type_trains_as_the_torch_backend_does(
    model_type: str, new_training: Callable[..., Training], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    write_base(base, model_type, **({"head_dim": 8} if model_type == "qwen3" else {}))
    changes = EXACT | {"base_path": str(base), "lora": {"targets": ALIKE}}
    neuron = new_training(name="neuron", **changes)
    torch = new_training(name="torch", backend="torch", **changes)
    for training in (neuron, torch):
        training.run()
    for key in ("loss", "grad_norm"):
        ours, theirs = (list(training.values(key).values()) for training in (neuron, torch))
        print(
            f"{model_type}: largest difference of {key}: {max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.1e}"
        )
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert neuron.values("loss")[8] < neuron.values("loss")[1] - 0.02
    assert tuned_loss(neuron, base) == pytest.approx(last_validation(neuron), abs=5e-6)
