"""A data set that fills only a few global batches: what of the plan is changed so that training has steps to learn in. Pure.

Called by the flow once the rows are counted. Only what nobody asked for is changed.
"""

from __future__ import annotations

import math

from steps.protocol.records import PreparedData
from steps.settings.plan import Plan

FEW_STEPS = 20
"""Below this the learning rate has hardly risen and fallen, and each step is a tenth of all that is learned."""


def fit_to_data(plan: Plan, prepared: PreparedData) -> Plan:
    """The plan with a smaller global batch, and unpacked if need be, where it would come to fewer than FEW_STEPS steps."""
    if plan.max_steps or prepared.steps >= FEW_STEPS:
        return plan
    changes: dict[str, object] = {}
    rows, unit = prepared.rows, max(plan.replicas, 1) * plan.training.micro_batch
    batch = plan.training.global_batch if "global_batch" in plan.given else unit
    if plan.packing and "packing" not in plan.given and _steps(plan, rows, batch) < FEW_STEPS:
        rows = prepared.train_samples
        changes |= {"packing": False, "packing_reason": f"{prepared.train_samples:,} samples fill too few rows"}
    if "global_batch" not in plan.given:
        fits = range(plan.training.global_batch, 0, -1)
        batch = next((size for size in fits if size % unit == 0 and _steps(plan, rows, size) >= FEW_STEPS), batch)
        changes["training"] = plan.training.model_copy(update={"global_batch": batch})
    return plan.model_copy(update=changes)


def _steps(plan: Plan, rows: int, batch: int) -> int:
    return math.ceil(plan.epochs * rows / batch)


def in_epochs(plan: Plan, prepared: PreparedData) -> str:
    """How often the run sees the samples, in words."""
    epochs = prepared.steps * prepared.global_batch / max(prepared.rows, 1)
    words = f"{epochs:.2g} epoch{'' if epochs == 1 else 's'} of {prepared.train_samples:,} samples"
    is_asked = plan.max_steps > 0  # by a person or the data's preset, which know what suffices
    if is_asked or prepared.steps >= FEW_STEPS:
        return words
    return f"{words}; few steps: more --epochs or --max-steps learn more"
