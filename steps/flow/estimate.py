"""The plan in one line, before anything is trained: tokens, steps, layout, how long it will take and what it will cost.

The time comes from an earlier training with the same model and layout on this machine (tokens per second, and the seconds around
the steps), and from an earlier merge and evaluation of the same data. Both are remembered in the cache; without them the time is
said to be unknown rather than guessed. Where a processor computes, they are remembered with the share of it that the training
had: a run beside other work says how long the next one takes without, and the other way round.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from steps import machine
from steps.errors import StorageError
from steps.evaluate.gate import half_width
from steps.flow.small_data import in_epochs
from steps.flow.terminal import seconds_in_words
from steps.plain_text import counted
from steps.protocol.events import EventTail
from steps.protocol.records import BaseModel, PreparedData, identity_of
from steps.protocol.rundir import read_json, write_json
from steps.settings.plan import Plan

FILE = "throughput.json"
STEPS_AFTER_PLAN = ("train", "merge", "evaluate", "end")
LONGEST_START_S = 60.0
"""A process that is older has done more than to start."""
AFTER = ("merge", "evaluate")
"""Stages whose time is remembered beside the training's."""
ALONE = 0.85
"""Share of its threads' time that a training gets on a processor that does nothing else; the rest is one waiting for another."""
TOLD = 1.3
"""From this factor on a person is told that the last time was another time."""


def plan_line(plan: Plan, base: BaseModel, prepared: PreparedData, *, cache: Path) -> str:
    """One sentence for a person who may still press Ctrl-C."""
    tokens = tokens_of_run(prepared)
    training, lora = plan.training, plan.training.lora
    layout = (
        f"{counted(plan.world, 'process', 'processes')} × {plan.accumulation} accumulated × {training.micro_batch} rows"
    )
    line = (
        f"plan: {prepared.steps:,} steps of {training.global_batch} rows ({layout}), about {tokens:,} tokens, "
        f"{lora.method} rank {lora.rank} on {', '.join(lora.targets)}, {training.precision}"
    )
    line += f" ({plan.precision_reason})" if plan.precision_reason else ""
    line += f"; {in_epochs(plan, prepared)}; {_held_out(plan, prepared)}"
    line += f"; not packed: {plan.packing_reason}" if plan.packing_reason else ""
    line += "".join(f"; {reason}" for reason in plan.layout)
    pace = recall(plan, base, cache=cache)
    if pace is None:
        return line + "; time: unknown, this model has not been trained here with this layout yet"
    factor = slower_now(pace, plan)
    training_s = (tokens / pace.tokens_per_s + pace.around_s) * factor
    line += (
        f"; about {seconds_in_words(training_s)} of training at the {pace.tokens_per_s:,.0f} tokens/s of the last time"
    )
    line += (
        "" if 1 / TOLD < factor < TOLD else f", when the machine was {'more' if factor < 1 else 'less'} busy than now"
    )
    prices = plan.settings.prices
    line += f", {training_s / 3600 * prices.node_hour:.2f} {prices.currency}" if prices.node_hour else ""
    after_s = recall_after(plan, prepared, cache=cache)
    if after_s is None:
        return line + ", then merge and evaluation, which have not been measured with this data yet"
    return line + f", {seconds_in_words(training_s + after_s * factor)} with merge and evaluation"


def _held_out(plan: Plan, prepared: PreparedData) -> str:
    """How many samples are kept for evaluation, and what they can tell."""
    measured = plan.evaluation_rows(prepared.validation_samples)
    return f"{counted(measured, 'held-out sample')} to measure (± {100 * half_width(measured):.0f} points at 95 %)"


def tokens_of_run(prepared: PreparedData) -> int:
    """Tokens that all steps together will see, from the rows' mean length."""
    return round(prepared.tokens / max(prepared.rows, 1) * prepared.steps * prepared.global_batch)


@dataclass(frozen=True, slots=True)
class Pace:
    """What the last training like this one took."""

    tokens_per_s: float
    around_s: float = 0.0
    """Seconds of start, load, validation, saves and exit."""
    share: float = 0.0
    """Of the processor time that its threads could have had, what they got; 0: not known, or another device computed."""


def slower_now(pace: Pace, plan: Plan, *, load: float | None = None, cores: int = 0) -> float:
    """How many times as long as then it takes, with so much other work on the machine; 1 where that is not known.

    `load`: runnable processes of the last minute, this one among them; None: asked. `cores`: of this machine; 0: asked.
    """
    if pace.share <= 0:
        return 1.0
    cores = cores or machine.cores()
    others = max(0.0, (os.getloadavg()[0] if load is None else load) - 1)
    threads = plan.processes * machine.threads_of(plan.settings.launcher.threads_per_process, plan.processes)
    return pace.share / (ALONE * min(1.0, cores / (threads + others)))


def share_of(events: Path, plan: Plan) -> float:
    """The share of `Pace`, from what a worker told at its end; 0 on a cluster and where there is a GPU."""
    launcher = plan.settings.launcher
    if launcher.kind != "local" or launcher.backend != "torch" or any(path.exists() for path in machine.GPU_FILES):
        return 0.0
    told = [event.data for event in EventTail(events).read_new() if event.kind == "finished"]
    finished = told[-1] if told else {}
    spent, took = (float(finished.get(name, 0) or 0) for name in ("processor_s", "seconds"))
    threads = machine.threads_of(launcher.threads_per_process, plan.processes)
    return round(min(spent / took / threads, ALONE), 3) if took > 0 else 0.0


def recall(plan: Plan, base: BaseModel, *, cache: Path) -> Pace | None:
    """Of the last training like this one here; None if there was none."""
    kept = _read(cache).get(_key(plan, base))
    found = kept if isinstance(kept, dict) else {"tokens_per_s": kept}
    speed, around_s = (found.get(name, 0) for name in ("tokens_per_s", "around_s"))
    if not isinstance(speed, int | float) or not isinstance(around_s, int | float) or speed <= 0:
        return None
    share = found.get("share", 0)
    share = float(share) if isinstance(share, int | float) and 0 < share <= 1 else 0.0
    return Pace(float(speed), max(float(around_s), 0.0), share)


def recall_after(plan: Plan, prepared: PreparedData, *, cache: Path) -> float | None:
    """Seconds that merge and evaluation took the last time with this data; None if they were not measured."""
    kept = [_read(cache).get(_after_key(plan, prepared, name)) for name in AFTER]
    seconds = [float(value) for value in kept if isinstance(value, int | float)]
    return sum(seconds) if len(seconds) == len(AFTER) else None


def remember(
    plan: Plan, base: BaseModel, account: Mapping[str, Any], prepared: PreparedData, *, cache: Path, share: float = 0.0
) -> None:
    """Keep this training's pace for the next plan; one of several attempts, or without a productive second, teaches nothing."""
    seconds = float(account.get("productive_s", 0) or 0)
    if seconds <= 0 or int(account.get("attempts", 1) or 1) != 1:
        return
    waited_s = sum(float(account.get(f"{name}_s", 0) or 0) for name in ("productive", "queue", "idle"))
    pace = Pace(
        round(tokens_of_run(prepared) / seconds, 1),
        round(max(float(account.get("total_s", 0) or 0) - waited_s, 0.0), 1),
        share,
    )
    write_json(cache / FILE, {**_read(cache), _key(plan, base): asdict(pace)})


def start_s() -> float:
    """What it costs to start the processes of the steps that follow the plan, if each takes as long as this one has by now."""
    age_s = time.time() - psutil.Process().create_time()
    return len(STEPS_AFTER_PLAN) * min(max(age_s, 0.0), LONGEST_START_S)


def remember_after(plan: Plan, prepared: PreparedData, seconds: Mapping[str, float], *, cache: Path) -> None:
    """Keep what each stage of `AFTER` took with this data."""
    kept = {_after_key(plan, prepared, name): round(seconds[name], 1) for name in AFTER}
    write_json(cache / FILE, _read(cache) | kept)


def _read(cache: Path) -> dict[str, Any]:
    try:
        return read_json(cache / FILE)
    except StorageError:
        return {}


def _after_key(plan: Plan, prepared: PreparedData, name: str) -> str:
    measured = plan.settings.evaluation.model_dump(mode="json")
    return identity_of([name, plan.model.name, prepared.digest, plan.training.precision, measured])


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
