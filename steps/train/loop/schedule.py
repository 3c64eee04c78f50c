"""The learning rate of each step: warm-up, then cosine, linear or constant. Both backends follow it.

Every step has a rate above zero. transformers' own schedules begin at 0, so that the first step of a run, and the only step of
the shortest, changes nothing.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from steps.train.spec import TrainSpec


def warmup_steps(ratio: float, steps: int) -> int:
    """Steps below the full rate: the ratio's share rounded up, but never the whole run."""
    return min(math.ceil(ratio * steps), steps - 1)


def rate_factor(step: int, *, spec: TrainSpec) -> float:
    """What the peak learning rate is multiplied by in step `step`, from 0.

    With w steps of warm-up: (step + 1) / (w + 1) during them, then 1, falling towards 0, which would come after the last step.
    """
    warmup = warmup_steps(spec.training.warmup_ratio, spec.steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min((step - warmup) / (spec.steps - warmup), 1.0)
    if spec.training.scheduler == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress if spec.training.scheduler == "linear" else 1.0


def make_scheduler(optimizer: Any, spec: TrainSpec) -> Any:
    """torch's LambdaLR with these rates."""
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, partial(rate_factor, spec=spec))


def follow(scheduler: Any, spec: TrainSpec) -> None:
    """Make a library's LambdaLR, still at step 0, give these rates instead of its own."""
    scheduler.lr_lambdas = [partial(rate_factor, spec=spec)] * len(scheduler.base_lrs)
    scheduler._last_lr = [base * rate_factor(0, spec=spec) for base in scheduler.base_lrs]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate
