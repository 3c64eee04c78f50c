"""The real worker, with one rank that falls asleep in the middle of a step of the first attempt.

Run as the module of a job, in the worker's place; the environment says which rank (SLEEPY_RANK).
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

FORWARDS_BEFORE = 9
"""Micro-batches that pass first: with two of them in a step, the sleep falls into the middle of step 5, behind a save."""


def fall_asleep() -> None:
    """The name that the evidence has to hold."""
    while True:
        time.sleep(1)


def make_sleepy() -> None:
    """Put the sleep into the forward pass."""
    from steps.train.pytorch.model import TargetLoss

    forward, passed = TargetLoss.__call__, iter(range(FORWARDS_BEFORE))

    def sleepy(self: TargetLoss, *arguments: Any) -> Any:
        if next(passed, None) is None:
            fall_asleep()
        return forward(self, *arguments)

    TargetLoss.__call__ = sleepy  # type: ignore[method-assign]


if __name__ == "__main__":
    from steps.train import worker

    if sys.argv[-1] == "1" and os.environ["RANK"] == os.environ["SLEEPY_RANK"]:
        make_sleepy()
    os._exit(worker.main())
