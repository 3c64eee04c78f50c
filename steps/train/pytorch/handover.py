"""The exported adapter, loaded as anyone would load it: its loss must be the last validation's. Called by the backend.

Independent of what trains: transformers' own attention, full logits, one row at a time, PEFT's own loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.protocol.handover import HeldOutLoss, require_same
from steps.protocol.prepared import IGNORED_LABEL, PreparedRow, PreparedRows
from steps.train.spec import TrainSpec

if TYPE_CHECKING:
    from torch import device


def check_adapter(spec: TrainSpec, adapter: Path, expected: HeldOutLoss, *, place: device) -> None:
    """Load base and adapter anew and compare.

    Raises:
        HandoverError: the loss differs.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from steps.train.pytorch.model import four_bits

    training = spec.training
    options: dict[str, Any] = {"dtype": torch.bfloat16 if training.precision == "bf16" else torch.float32}
    if training.quantization == "4bit":
        options |= {"quantization_config": four_bits(spec), "device_map": {"": place}}
    base = AutoModelForCausalLM.from_pretrained(spec.base_path, local_files_only=True, use_safetensors=True, **options)
    model = PeftModel.from_pretrained(base, str(adapter)).to(place).eval()
    held_out = PreparedRows.open(Path(spec.prepared_path)).validation
    found = plain_loss(model, [held_out.row(index) for index in range(expected.rows)], place=place)
    kind = "4bit" if training.quantization == "4bit" else training.precision
    require_same(
        expected, found, kind=kind, how=f"the exported adapter on {spec.base_name}, in plain transformers and PEFT,"
    )


def plain_loss(model: Any, rows: list[PreparedRow], *, place: device) -> float:
    """Mean cross-entropy per target token."""
    import torch

    total, targets = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            ids = torch.from_numpy(row.input_ids.astype("int64")).to(place)
            labels = torch.from_numpy(row.labels.astype("int64")).to(place)[1:]
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
            total, targets = total + loss.item(), targets + int((labels != IGNORED_LABEL).sum())
    return total / max(targets, 1)
