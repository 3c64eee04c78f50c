"""Training on Neuron cores learns, at the rates that it reports, from what plain transformers would learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.merge import stage
from steps.protocol.prepared import PreparedRow, PreparedRows
from steps.protocol.rundir import RunDir
from tests.merge.merge_records import adapter_record, base_record, plan
from tests.neuron.neuron_harness import EXACT, PATIENCE_S, Training


def plain_loss(model: Any, rows: Iterable[PreparedRow]) -> float:
    """Mean loss per target token of every sample alone, unpadded, one at a time."""
    import torch

    losses, targets = [], 0
    for row in rows:
        end = 0
        for length in row.lengths.tolist():
            part = slice(end, end := end + length)
            ids, labels = (torch.tensor(values[part].tolist())[None] for values in (row.input_ids, row.labels))
            labels[:, 0] = -100
            with torch.no_grad():
                logits = model(input_ids=ids).logits.float()
            losses.append(
                torch.nn.functional.cross_entropy(
                    logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
                ).item()
            )
            targets += int((labels != -100).sum())
    return math.fsum(losses) / targets


def plain_model(base: Path) -> Any:
    """The base in transformers, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def tuned_loss(training: Training, base: Path) -> float:
    """Loss of the exported adapter, loaded with PEFT, on the rows that validation looks at."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT only warns of keys that it misses
        model = PeftModel.from_pretrained(plain_model(base), training.adapter()).eval()
    return validation_loss(model, training)


def merged_loss(training: Training, base: Path, run: Path) -> float:
    """The same of what our merge makes of it."""
    record = replace(base_record(base), dtype="float32")
    run.mkdir()
    merged = stage.merge(plan(), record, adapter_record(training.adapter(), record), RunDir(run), lineage={})
    return validation_loss(plain_model(Path(merged.path)), training)


def validation_loss(model: Any, training: Training) -> float:
    """Of the rows that validation looks at."""
    held_out = PreparedRows.open(Path(training.spec.prepared_path)).validation
    return plain_loss(model, (held_out.row(index) for index in range(training.spec.validation_rows)))


def last_validation(training: Training) -> float:
    """The trained model's own loss on these rows, computed on the cores."""
    return float([event.data["loss"] for event in training.events() if event.kind == "validation"][-1])


def test_warm_up_under_zero_1_uses_the_schedule_and_learns(uninterrupted: Callable[[str], Training]) -> None:
    training = uninterrupted("bf16, DP=2")
    rates = list(training.values("lr").values())
    assert rates == pytest.approx([1e-2 * part for part in (1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)])
    losses = training.values("loss")
    assert losses[8] < losses[1] - 0.1


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_loss_is_that_of_each_sample_alone(packed: bool, new_training: Callable[..., Training], base: Path) -> None:
    rows = [[9, 14, 11], [20, 17], [16, 8, 7, 12]] if packed else [[13], [30], [47]]
    data = {"rows": rows, "order": [0, 1, 2, 0]}
    training = new_training(data=data, packed=packed, steps=1, tensor_parallel=2, **EXACT)
    training.run(processes=2)
    prepared = PreparedRows.open(Path(training.spec.prepared_path))
    expected = plain_loss(plain_model(base), (prepared.row(index) for index in (0, 1, 2, 0)))
    assert training.values("loss")[1] == pytest.approx(expected, abs=2e-6)


def test_gradient_checkpointing_changes_no_loss(
    uninterrupted: Callable[[str], Training], new_training: Callable[..., Training]
) -> None:
    stored, recomputed = uninterrupted("fp32"), new_training(gradient_checkpointing=True, **EXACT)
    recomputed.run()
    losses = [list(training.values("loss").values()) for training in (stored, recomputed)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-6)
    assert losses[0][-1] != losses[0][0]


def test_a_schedule_cut_off_from_the_optimizer_ends_the_attempt(
    new_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURON_TEST_UNDO", "link")
    training = new_training()
    assert training.start(1, processes=1).wait(timeout=PATIENCE_S) != 0
    (failure,) = training.failures()
    assert failure.exception == "ScheduleError"
    assert "at step 1 the optimizer would use learning rates [0.01, 0.01], the schedule says [0.0033" in failure.message


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_a_loss_that_is_no_sum_ends_the_attempt_before_anything_is_trained(
    tensor_parallel: int, new_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURON_TEST_UNDO", "reduction")
    training = new_training(tensor_parallel=tensor_parallel)
    assert training.start(1, processes=tensor_parallel).wait(timeout=PATIENCE_S) != 0
    failure = training.failures()[0]
    assert (failure.exception, failure.failure_class, failure.step) == ("ModelError", "config", 0)
    assert "its own logits give 5." in failure.message  # ln 260 = 5.56
    assert training.values("loss") == {}
