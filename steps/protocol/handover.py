"""The guard over all hand-overs: the loss of a few held-out rows must stay what it was in the last validation.

The worker checks the exported adapter (plain transformers and PEFT on the base), evaluation the merged model. So no fault in
between (a weight that was tied, a name that was not found, a loss divided twice) gets through, whatever its kind. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from steps.errors import LoraFlowError

ROWS = 4
"""At least so many held-out rows: seconds of work, and a fault in a hand-over shows in the first."""
TOLERANCES = {"fp32": 2e-3, "bf16": 3e-2, "4bit": 5e-2, "4bit merged": 0.5}
"""Of the loss, relative where it is above 1: what other kernels and roundings may change. Merging what was trained on 4-bit
weights into the full ones also changes the base by the quantisation's error."""


class HandoverError(LoraFlowError):
    """A hand-over between two stages changed the model."""

    headline = "The model was changed"


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Loss of the first held-out rows."""

    rows: int
    loss: float
    """Mean cross-entropy per target token, nats."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any] | None) -> HeldOutLoss | None:
        """Read back; None where nothing, or something else, was written."""
        try:
            return cls(int(raw["rows"]), float(raw["loss"])) if raw else None
        except (KeyError, TypeError, ValueError):
            return None


def require_same(expected: HeldOutLoss, found: float, *, kind: str, how: str) -> None:
    """The loss is what the last validation found. `kind` is a key of TOLERANCES; `how` says what was loaded for `found`.

    Raises:
        HandoverError: it is not; with both.
    """
    allowed = TOLERANCES[kind] * max(expected.loss, 1.0)
    if abs(found - expected.loss) <= allowed:  # false for NaN too
        return
    raise HandoverError(
        f"{how} does not compute what was trained: on the first {expected.rows} held-out rows the last validation found a loss "
        f"of {expected.loss:.4f}, now it is {found:.4f} (allowed: ± {allowed:.4f}). Do not use this model. The fault is in this "
        "project or in a library, for this architecture or these options: train with others (--lora-targets all-linear, "
        "--method lora), and report it with the model's config.json"
    )
