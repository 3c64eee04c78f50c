"""What a training may use of the cluster: node-hours, or money at a price. Pure.

Only nodes that are held count: not the time in a queue, nor between attempts. All attempts count, those of earlier supervisors
too, until the budget was used up and a person went on: then as much is given once more.
"""

from __future__ import annotations

from dataclasses import dataclass

from steps.settings.config import Settings

WARN_AT = 0.8
"""Share of the budget at which a person is told."""


@dataclass(slots=True)
class Budget:
    """What may be used, and what has been."""

    node_hours: float
    """0: no limit."""
    limit: str
    """The limit in words, with its setting."""
    before: float = 0.0
    """Node-hours of the attempts before the present one."""
    nodes: int = 1
    """That the present attempt holds."""
    has_warned: bool = False

    def used(self, attempt_s: float) -> float:
        """Node-hours so far, when the present attempt has held its nodes for so many seconds."""
        return self.before + attempt_s * self.nodes / 3600

    def is_spent(self, attempt_s: float) -> bool:
        """Nothing is left."""
        return bool(self.node_hours) and self.used(attempt_s) >= self.node_hours

    def warning(self, attempt_s: float) -> str:
        """A sentence when most of it is used, once; empty otherwise."""
        if self.has_warned or not self.node_hours or self.used(attempt_s) < WARN_AT * self.node_hours:
            return ""
        self.has_warned = True
        return f"{self.used(attempt_s):.4g} node-hours are used of {self.limit}; then the workers save and stop"


def budget_of(settings: Settings) -> Budget:
    """The tighter of both limits."""
    limits, prices = settings.limits, settings.prices
    allowed = []
    if limits.node_hours:
        allowed.append((limits.node_hours, f"{limits.node_hours:g} (limits.node_hours)"))
    if limits.cost and prices.node_hour:
        hours = limits.cost / prices.node_hour
        allowed.append((hours, f"{hours:.4g}, which cost {limits.cost:g} {prices.currency} (limits.cost)"))
    return Budget(*min(allowed, default=(0.0, "")))
