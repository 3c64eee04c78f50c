"""What becomes of one architecture: every property of the matrix, measured on a tiny model with the code that trains and merges.

Used by the tests beside it and by `table`, which writes docs/architectures.md. Losses are compared with those of plain
transformers and PEFT.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steps.errors import ConfigError, LoraFlowError
from steps.merge.outputs import merge_folders
from steps.protocol.prepared import PreparedRow
from steps.settings.catalog import ALL_LINEAR
from steps.settings.plan import Plan
from steps.train.architecture import check_weights, fit_to_architecture
from steps.train.loop.rows import collate
from steps.train.pytorch.model import TargetLoss, adapter_weights, load_model, write_adapter
from steps.train.spec import TrainSpec
from tests.matrix.architectures import VOCABULARY
from tests.shared.sample_records import plan_of

CPU = torch.device("cpu")
CLOSE = 2e-5
"""Relative difference of two fp32 losses that were summed in different orders."""


@dataclass(frozen=True)
class Outcome:
    """One row of the table; empty words mean "works"."""

    attention: str
    packing: str
    """Why packing is refused."""
    adapted: int
    """Modules with an adapter."""
    packed_loss: float | None
    """Largest relative difference of a sample's loss, packed and alone; None where packing is refused."""
    padded_loss: float
    """Relative difference of the loss of a padded batch and the sum over its samples."""
    plain_loss: float
    """Largest relative difference of our loss and that of plain transformers and PEFT."""
    merge: float
    """Largest difference of a merged weight from PEFT's merge_and_unload; NaN for single targets, since PEFT's merge changes
    the head with a tied embedding."""
    reload: float
    """Relative difference of the loss, in training and of the merged folder in plain transformers."""


def row(seed: int, length: int, *, learned: bool = True) -> PreparedRow:
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, length).astype(np.int32)
    return PreparedRow(ids, ids.copy() if learned else np.full_like(ids, -100), np.array([length], dtype=np.int32))


def join(*rows: PreparedRow) -> PreparedRow:
    return PreparedRow(*(np.concatenate([getattr(one, name) for one in rows]) for name in PreparedRow.__slots__))


def spec_of(base: Path, plan: Plan) -> TrainSpec:
    return TrainSpec(
        directory=str(base.parent / "train"), identity="x", base_path=str(base), base_digest="b", base_name="tiny",
        prepared_path="/nowhere", prepared_digest="p", steps=1, training=plan.training, sequence_length=64,
        packed=plan.packing, checkpoint_every=1, checkpoints_kept=1, validation_every=1, validation_rows=0,
    )  # fmt: skip


def decide(base: Path, **options: Any) -> Plan:
    """What `start` decides for this model, or refuses."""
    config = json.loads((base / "config.json").read_text())
    plan = plan_of(model=str(base), dataset="alpaca", sequence_length=64, precision="fp32", **options)
    plan = fit_to_architecture(plan, config)
    check_weights(plan, config, base)
    return plan


def plain_loss(model: Any, sample: PreparedRow) -> float:
    """Summed over the targets, from full logits, one row, no mask and no cache."""
    ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    labels = torch.from_numpy(sample.labels.astype(np.int64))
    return float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))


def stir(model: Any, *, std: float = 0.1) -> None:
    """Values for what starts at 0, so that the adapter shows."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(std=std)


def measure(base: Path, **options: Any) -> Outcome:
    """Every property of the model in `base`.

    Raises:
        ConfigError: `start` refuses it.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan = decide(base, **options)
    spec = spec_of(base, plan)
    model = load_model(spec, place=CPU)
    stir(model)
    model.eval()
    ours = TargetLoss(model, precision="fp32")
    samples = [row(1, 19), row(2, 31)]
    with torch.no_grad():
        alone = [ours(model, collate([one], packed=False), CPU).item() for one in samples]
        packed = _packed_difference(ours, model, samples, alone) if plan.packing else None
        padded = ours(model, collate(samples, packed=False), CPU).item()
    folder, merged = base.parent / "adapter", base.parent / "merged"
    folder.mkdir(exist_ok=True)
    write_adapter(folder, model, adapter_weights(model), base_name="tiny")
    merge_folders(base, folder, merged)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    plain = [plain_loss(theirs, one) for one in samples]
    reloaded, info = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    assert not info["mismatched_keys"]
    after = [plain_loss(reloaded.eval(), one) for one in samples]
    return Outcome(
        attention=str(model.config._attn_implementation),
        packing=plan.packing_reason,
        adapted=sum("lora_A" in name or "lora_embedding_A" in name for name, _ in model.named_parameters()),
        packed_loss=packed,
        padded_loss=_difference([sum(alone)], [padded]),
        plain_loss=_difference(alone, plain),
        merge=_weights_apart(theirs, reloaded) if plan.training.lora.targets == (ALL_LINEAR,) else math.nan,
        reload=_difference(plain, after),
    )


def _packed_difference(ours: TargetLoss, model: Any, samples: list[PreparedRow], alone: list[float]) -> float:
    silent = [PreparedRow(one.input_ids, np.full_like(one.labels, -100), one.lengths) for one in samples]
    rows = [join(samples[0], silent[1]), join(silent[0], samples[1])]
    return _difference(alone, [ours(model, collate([one], packed=True), CPU).item() for one in rows])


def _difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))


def _weights_apart(peft_model: Any, reloaded: Any) -> float:
    expected = peft_model.merge_and_unload().state_dict()
    found = reloaded.state_dict()
    return max(
        float((expected[name] - found[name]).abs().max()) for name in expected if expected[name].is_floating_point()
    )


def refusal(base: Path, **options: Any) -> str:
    """Why `start` refuses; empty: it does not."""
    try:
        decide(base, **options)
    except (ConfigError, LoraFlowError) as error:
        return str(error)
    return ""
