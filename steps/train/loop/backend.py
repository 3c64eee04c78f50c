"""What the worker needs of a training framework: the protocol that `torch_backend` and `neuron_backend` satisfy.

Every method runs on every rank, in the same order; where files are written, the backend decides which rank writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from steps.protocol.handover import HeldOutLoss


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters of the model with its adapter."""

    parameters: int
    trainable: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimizer step, as every rank knows it."""

    step: int
    """Steps done, from 1."""
    loss: float
    """Mean cross-entropy per target token of the global batch, nats."""
    learning_rate: float
    """Used in this step."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    target_tokens: int
    stop_asked: bool
    """Some rank was asked to stop."""


class Listener(Protocol):
    """Hears of every step."""

    def step_done(self, done: StepDone) -> bool:
        """True ends training after this step; the same on every rank."""


Told = Callable[[int, int], None]
"""(batches done, batches in all) of this rank."""


class Backend(Protocol):
    """A training framework behind one door."""

    @property
    def layout(self) -> dict[str, Any]:
        """backend, world, dp, tp, pp, micro_batch, …: recorded with every checkpoint."""

    @property
    def shapes(self) -> int | None:
        """Distinct shapes of batches that were computed so far; None where their number does not matter."""

    def fits(self, layout: Mapping[str, Any]) -> str | None:
        """Why a checkpoint of this layout cannot be continued here, None if it can."""

    def load(self, checkpoint: Path | None) -> ModelSize:
        """Load the base model and its adapter, fresh or from a checkpoint.

        Raises:
            ConfigError, ModelError: they do not go together.
        """

    def train(self, *, done: int, listener: Listener) -> None:
        """Take steps `done` + 1, … up to the last, or until the listener says stop."""

    def validate(self, told: Told) -> float:
        """Mean cross-entropy per target token of the held-out rows, nats."""

    def validation_head(self) -> HeldOutLoss | None:
        """Loss of the first rows in the last validation; None where it is not known."""

    def remember_best(self) -> None:
        """Keep the adapter as it is now; saves hold it from here on."""

    def save(self, folder: Path) -> None:
        """Write all that `load` and `train` need to go on, into an existing directory."""

    def export(self, folder: Path, *, best: bool) -> None:
        """Write the adapter in PEFT's format into an existing directory: as it is now, or as it was remembered."""

    def check_export(self, folder: Path, expected: HeldOutLoss) -> None:
        """Load what `export` wrote independently and compare; the last call on a backend, whose model may be gone after it.

        Raises:
            HandoverError: it computes something else than was trained.
        """
