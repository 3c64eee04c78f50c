"""The plan in one line, before anything is trained: tokens, steps, layout, how long it will take and what it will cost.

The time comes from the tokens per second of an earlier training with the same model and layout on this machine, remembered in
the cache; without one it is said to be unknown rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.flow.small_data import in_epochs
from steps.flow.terminal import seconds_in_words
from steps.protocol.records import BaseModel, PreparedData, identity_of
from steps.protocol.rundir import read_json, write_json
from steps.settings.plan import Plan

FILE = "throughput.json"


def plan_line(plan: Plan, base: BaseModel, prepared: PreparedData, *, cache: Path) -> str:
    """One sentence for a person who may still press Ctrl-C."""
    tokens = tokens_of_run(prepared)
    training, lora = plan.training, plan.training.lora
    layout = f"{plan.world} process(es) × {plan.accumulation} accumulated × {training.micro_batch} rows"
    line = (
        f"plan: {prepared.steps:,} steps of {training.global_batch} rows ({layout}), about {tokens:,} tokens, "
        f"{lora.method} rank {lora.rank} on {', '.join(lora.targets)}, {training.precision}"
    )
    line += f" ({plan.precision_reason})" if plan.precision_reason else ""
    line += f"; {in_epochs(prepared)}"
    line += f"; not packed: {plan.packing_reason}" if plan.packing_reason else ""
    line += "".join(f"; {reason}" for reason in plan.layout)
    speed = recall(plan, base, cache=cache)
    if speed is None:
        return line + "; time: unknown, this model has not been trained here with this layout yet"
    seconds = tokens / speed
    line += f"; about {seconds_in_words(seconds)} at the {speed:,.0f} tokens/s of the last time"
    price = plan.settings.launcher.price_per_node_hour
    return line + (f", {seconds / 3600 * price:.2f} {plan.settings.launcher.currency}" if price else "")


def tokens_of_run(prepared: PreparedData) -> int:
    """Tokens that all steps together will see, from the rows' mean length."""
    return round(prepared.tokens / max(prepared.rows, 1) * prepared.steps * prepared.global_batch)


def recall(plan: Plan, base: BaseModel, *, cache: Path) -> float | None:
    """Tokens per second of the last training like this one here, None if there was none."""
    try:
        speed = read_json(cache / FILE).get(_key(plan, base))
    except StorageError:
        return None
    return float(speed) if isinstance(speed, int | float) and speed > 0 else None


def remember(plan: Plan, base: BaseModel, account: Mapping[str, Any], prepared: PreparedData, *, cache: Path) -> None:
    """Keep this training's tokens per second for the next plan; a training without a productive second teaches nothing."""
    seconds = float(account.get("productive_s", 0) or 0)
    if seconds <= 0 or int(account.get("attempts", 1) or 1) != 1:
        return
    try:
        known = read_json(cache / FILE)
    except StorageError:
        known = {}
    write_json(cache / FILE, {**known, _key(plan, base): round(tokens_of_run(prepared) / seconds, 1)})


def _key(plan: Plan, base: BaseModel) -> str:
    return identity_of(
        [
            base.digest,
            plan.training.precision,
            plan.training.quantization,
            plan.training.sharding,
            plan.world,
            plan.tensor_parallel,
            plan.pipeline_parallel,
            plan.training.micro_batch,
            plan.packing,
            plan.sequence_length,
            plan.training.lora.model_dump(mode="json"),
            plan.training.gradient_checkpointing,
            plan.settings.launcher.threads_per_process,
        ]
    )
