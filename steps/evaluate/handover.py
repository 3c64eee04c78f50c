"""The merged model, loaded as anyone would load it: its loss on a few held-out rows must be the last validation's.

Called by the flow before anything is measured. What it is held against lies in the adapter's training.json.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from steps.evaluate.loss import Sample, mean_loss
from steps.evaluate.measure import Progress, import_libraries
from steps.protocol.handover import HeldOutLoss, require_same
from steps.protocol.prepared import PreparedRows
from steps.protocol.records import Adapter, MergedModel, PreparedData
from steps.protocol.rundir import read_json
from steps.settings.plan import Plan


def check_merged(
    plan: Plan, prepared: PreparedData, adapter: Adapter, merged: MergedModel, *, progress: Progress | None = None
) -> HeldOutLoss | None:
    """What the merged model was held against; None where nothing is known of the training's last validation.

    Raises:
        HandoverError: the merged model computes something else than was trained.
        StorageError: training.json or the prepared data is damaged.
    """
    expected = _expected(adapter)
    if expected is None:
        return None
    held_out = PreparedRows.open(Path(prepared.path)).validation
    rows = [held_out.row(index) for index in range(min(expected.rows, len(held_out)))]
    samples = [Sample(row.input_ids.tolist(), row.labels.tolist()) for row in rows]
    found = _loss(Path(merged.path), samples, plan.training.precision, progress)
    require_same(expected, found, kind=_kind(plan, merged), how=f"the merged model in {merged.path}")
    return expected


def _expected(adapter: Adapter) -> HeldOutLoss | None:
    """Of the first rows where the worker kept it, else of all rows of a validation; None where the adapter was cleaned away."""
    file = Path(adapter.path) / "training.json"
    if not file.is_file():
        return None
    training = read_json(file)
    if head := HeldOutLoss.from_dict(training.get("head")):
        return head
    rows = int(training.get("spec", {}).get("validation_rows", 0))
    return HeldOutLoss(rows, float(training["validation_loss"])) if rows and training.get("validation_loss") else None


def _loss(folder: Path, samples: list[Sample], precision: str, progress: Progress | None) -> float:
    import_libraries()
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    told = partial(_tell, progress, len(samples)) if progress else None
    return mean_loss(model, samples, on_samples=told)


def _tell(progress: Progress, of: int, done: int) -> None:
    progress("check of the merged model, samples", done, of)


def _kind(plan: Plan, merged: MergedModel) -> str:
    if plan.training.quantization == "4bit":
        return "4bit merged"
    return "fp32" if (plan.training.precision, merged.dtype) == ("fp32", "float32") else "bf16"
