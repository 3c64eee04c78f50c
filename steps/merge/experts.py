"""An adapter on the stacked weights of a mixture's experts, as changes of the single experts that the files hold. Pure.

transformers 5 keeps the experts of a layer in two parameters, `gate_up_proj` (experts, 2 · inner, hidden) and `down_proj`
(experts, hidden, inner); PEFT adapts such parameters (target_parameters). Files hold each expert's three matrices by themselves.
Used by `delta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steps.protocol.weight_names import STACKED

INNER = ".base_layer"


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of a stacked adapter belongs to one matrix of one expert."""

    expert: int
    experts: int
    """In the stack: A is (experts · rank, in), B is (out, rank · experts), its columns by rank first (PEFT, ParamWrapper)."""
    part: int
    parts: int
    """Matrices that share B's rows."""


def why_not(config: Mapping[str, Any]) -> str:
    """Why an adapter's target_parameters cannot be merged; empty: they can, or there are none."""
    unknown = [name for name in _targets(config) if name.rpartition(".")[2] not in {*STACKED, "weight"}]
    return (
        f"it adapts bare parameters other than experts' weights (target_parameters: {', '.join(unknown)})"
        if unknown
        else ""
    )


def parameter_of(module: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(owner, stacked parameter) that the adapter's `module` stands for; None: it is a layer like any other.

    Where PEFT adapts both parameters of an owner, the second's wrapper is around the first's.
    """
    owner = module.removesuffix(INNER)
    if owner.rpartition(".")[2] != "experts":
        return None
    found = [name for name in STACKED if _is_target(f"{owner}.{name}", config)]
    if not found or (module != owner and len(found) == 1):
        return None
    return owner, found[0] if module != owner else found[-1]


def matrices(owner: str, parameter: str, experts: int) -> list[tuple[str, Share]]:
    """The weights of the single experts, by name, and their shares."""
    parts = STACKED[parameter]
    return [
        (f"{owner}.{expert}.{name}.weight", Share(expert, experts, part, len(parts)))
        for expert in range(experts)
        for part, name in enumerate(parts)
    ]


def _targets(config: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in config.get("target_parameters") or ()]


def _is_target(parameter: str, config: Mapping[str, Any]) -> bool:
    """PEFT's rule."""
    return any(parameter == name or parameter.endswith(f".{name}") for name in _targets(config))
