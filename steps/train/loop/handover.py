"""The exported adapter, loaded as anyone would load it: its loss must be the last validation's. Called by the backends.

Independent of what trains: transformers' own attention, full logits, one row at a time, PEFT's own loading. Where no device has
room for the whole model (sharded training, Neuron cores) the host's processor computes it, if it has the memory and the time.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import machine
from steps.protocol.handover import HeldOutLoss, require_same
from steps.protocol.prepared import IGNORED_LABEL, PreparedRow, PreparedRows
from steps.train.spec import TrainSpec

if TYPE_CHECKING:
    from torch import device

logger = logging.getLogger(__name__)

SPARE = 1.2
"""Memory beside the weights: activations, logits, and what loading takes."""
MOST_WORK = 2e14
"""Operations on a processor: minutes of the whole node's time (one row of 1,000 tokens through 70 B parameters is 1.4e14)."""


def check_adapter(
    spec: TrainSpec, adapter: Path, expected: HeldOutLoss, *, place: device, options: dict[str, Any] | None = None
) -> None:
    """Load base and adapter anew and compare. `options` are for transformers, beside the dtype.

    Raises:
        HandoverError: the loss differs.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if _in_bf16(spec, place.type) else torch.float32
    base = AutoModelForCausalLM.from_pretrained(
        spec.base_path, dtype=dtype, local_files_only=True, use_safetensors=True, **(options or {})
    )
    model = PeftModel.from_pretrained(base, str(adapter)).to(place).eval()
    found = plain_loss(model, _rows(spec, expected), place=place)
    kind = "4bit" if spec.training.quantization == "4bit" else spec.training.precision
    require_same(
        expected, found, kind=kind, how=f"the exported adapter on {spec.base_name}, in plain transformers and PEFT,"
    )


def check_on_host(spec: TrainSpec, adapter: Path, expected: HeldOutLoss) -> None:
    """The same on the processor; where it would take too much of it, that is said: evaluation checks the merged model.

    Raises:
        HandoverError: the loss differs.
    """
    import torch

    if why := why_not_on_host(spec, expected, free_bytes=machine.free_memory()):
        logger.info("the exported adapter is not checked here: %s; evaluation checks the merged model", why)
        return
    torch.set_num_threads(machine.cores())  # the other ranks are done
    check_adapter(spec, adapter, expected, place=torch.device("cpu"))


def fits_device(spec: TrainSpec, place: device) -> bool:
    """Whether one accelerator holds the whole model, once its shard is gone."""
    import torch

    if place.type != "cuda":
        return False
    torch.cuda.empty_cache()
    return needed_memory(spec, place.type) <= torch.cuda.mem_get_info(place)[0]


def why_not_on_host(spec: TrainSpec, expected: HeldOutLoss, *, free_bytes: int | None) -> str:
    """Why the processor is not asked; empty: it is."""
    needed = needed_memory(spec, "cpu")
    tokens = sum(len(row.input_ids) for row in _rows(spec, expected))
    if free_bytes is not None and needed > free_bytes:
        return f"it needs {needed / 2**30:.1f} GiB of memory, free are {free_bytes / 2**30:.1f}"
    if needed / 2 * tokens > MOST_WORK:
        return f"{spec.base_name} is too large for a processor"
    return ""


def needed_memory(spec: TrainSpec, kind: str) -> int:
    """Memory for the whole base model on a device of this kind, from its files; most are of two bytes a value."""
    stored = sum(file.stat().st_size for file in Path(spec.base_path).glob("*.safetensors"))
    return int(stored * SPARE * (1 if _in_bf16(spec, kind) else 2))


def _in_bf16(spec: TrainSpec, kind: str) -> bool:
    """As it was trained, but not on a processor that is slow at bf16."""
    return spec.training.precision == "bf16" and (kind != "cpu" or machine.processor_has_fast_bf16())


def _rows(spec: TrainSpec, expected: HeldOutLoss) -> list[PreparedRow]:
    held_out = PreparedRows.open(Path(spec.prepared_path)).validation
    return [held_out.row(index) for index in range(expected.rows)]


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
