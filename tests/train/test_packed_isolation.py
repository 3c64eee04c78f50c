"""Samples of a packed row never see each other, and packing does not change a sample's loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from steps.library_versions import checkpoint_activations
from steps.protocol.prepared import PreparedRow
from steps.train.loop.rows import collate
from steps.train.pytorch.attention import choose_attention
from steps.train.pytorch.model import TargetLoss, load_model
from steps.train.spec import TrainSpec
from tests.train.train_harness import VOCABULARY, Trainings

CPU = torch.device("cpu")


def sample(seed: int, length: int) -> PreparedRow:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)
    return PreparedRow(ids, ids.copy(), np.array([length], dtype=np.int32))


def pack(*rows: PreparedRow) -> PreparedRow:
    return PreparedRow(*(np.concatenate([getattr(row, name) for row in rows]) for name in PreparedRow.__slots__))


@pytest.fixture(scope="module")
def spec(trainings: Trainings) -> TrainSpec:
    return trainings.make("isolation", samples=3).spec


@pytest.fixture(params=["by_sample", "sdpa"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Our attention, and transformers' own for the models that ours does not know."""
    if request.param == "sdpa":
        monkeypatch.setattr("steps.train.pytorch.attention.PLAIN_CAUSAL", frozenset())
    return str(request.param)


def model_of(spec: TrainSpec, attention: str) -> tuple[Any, TargetLoss]:
    model = load_model(spec, place=CPU)
    assert model.config._attn_implementation == attention
    with torch.no_grad():  # a fresh adapter adds nothing
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model.eval(), TargetLoss(model, precision="fp32")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_changing_sample_1_does_not_move_the_logits_of_sample_2(
    spec: TrainSpec, attention: str, checkpointing: bool
) -> None:
    model, loss = model_of(spec, attention)
    if checkpointing:
        checkpoint_activations(model)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    logits: list[torch.Tensor] = []
    model.get_base_model().get_output_embeddings().register_forward_hook(
        lambda *found: logits.append(found[2].detach())
    )
    second = sample(2, 20)
    for first in (sample(1, 15), sample(9, 15)):
        loss(model, collate([pack(first, second)], packed=True), CPU)
    targets_of_second = len(second.input_ids) - 1
    close = 0 if attention == "by_sample" else 1e-6
    torch.testing.assert_close(logits[0][-targets_of_second:], logits[1][-targets_of_second:], rtol=close, atol=close)
    assert not torch.equal(logits[0], logits[1])


def test_packed_loss_is_the_unpacked_loss_of_each_sample(spec: TrainSpec, attention: str) -> None:
    model, loss = model_of(spec, attention)
    samples = [sample(seed, length) for seed, length in enumerate((15, 31, 8))]
    alone = [loss(model, collate([one], packed=False), CPU).item() for one in samples]
    for number, one in enumerate(samples):  # the loss of one sample: the others have no targets
        silent = [PreparedRow(row.input_ids, np.full_like(row.labels, -100), row.lengths) for row in samples]
        silent[number] = one
        packed = loss(model, collate([pack(*silent)], packed=True), CPU).item()
        assert packed == pytest.approx(alone[number], rel=1e-5)
    assert loss(model, collate([pack(*samples)], packed=True), CPU).item() == pytest.approx(sum(alone), rel=1e-5)


def test_loss_is_that_of_transformers_own(spec: TrainSpec, attention: str) -> None:
    model, loss = model_of(spec, attention)
    rows = [sample(1, 15), sample(2, 31)]
    ours = loss(model, collate(rows, packed=False), CPU).item()
    model.get_base_model().get_output_embeddings()._forward_pre_hooks.clear()
    labels = torch.tensor(
        np.stack([np.pad(row.labels, (0, 31 - len(row.labels)), constant_values=-100) for row in rows])
    )
    ids = labels.clamp(min=0)
    mask = (labels != -100).long()
    theirs = model(input_ids=ids, attention_mask=mask, labels=labels.long()).loss.item() * (14 + 30)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_batch_without_targets_has_a_loss_of_zero(spec: TrainSpec, attention: str) -> None:
    model, loss = model_of(spec, attention)
    model.train()
    one = sample(1, 15)
    nothing = loss(
        model, collate([PreparedRow(one.input_ids, np.full_like(one.labels, -100), one.lengths)], packed=False), CPU
    )
    nothing.backward()
    assert nothing.item() == 0.0


def test_rows_of_a_packed_batch_may_differ_in_length(spec: TrainSpec, attention: str) -> None:
    model, loss = model_of(spec, attention)
    first, second = pack(sample(1, 15), sample(2, 20)), pack(sample(3, 9), sample(4, 5), sample(5, 4))
    apart = sum(loss(model, collate([row], packed=True), CPU).item() for row in (first, second))
    assert loss(model, collate([first, second], packed=True), CPU).item() == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize(
    ("model_type", "window", "expected"),
    [
        pytest.param("llama", None, "by_sample", id="plain"),
        pytest.param("mistral", 4096, "by_sample", id="a window wider than any row"),
        pytest.param("mistral", 64, None, id="a window that rows exceed"),
        pytest.param("gemma2", None, None, id="a soft cap"),
    ],
)
def test_ours_only_where_attention_is_plain(model_type: str, window: int | None, expected: str | None) -> None:
    config = SimpleNamespace(to_dict=lambda: {"model_type": model_type, "sliding_window": window})
    assert choose_attention(config, sequence_length=128) == expected
