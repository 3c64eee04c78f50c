"""Kubernetes' quantities (`127610m`, `460Gi`, `16`), read by its own client, and what a pod asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

Amounts = dict[str, Decimal]


def amount(text: object) -> Decimal:
    """A quantity as a number.

    Raises:
        ValueError: it is none.
    """
    try:
        (word,) = str(text).split()
        found: Decimal = parse_quantity(word)
        if not found.is_finite():
            raise ValueError("not a finite number")
    except ValueError as error:
        raise ValueError(f"{text!r} is no quantity of Kubernetes") from error
    return found


def amounts(raw: Mapping[str, Any] | None) -> Amounts:
    """Every quantity of a mapping."""
    return {name: amount(value) for name, value in (raw or {}).items()}


def asked_by(pod: Mapping[str, Any], kind: str = "requests") -> Amounts:
    """What a pod's spec asks for: its containers together, or its largest init container. A limit alone is a request too."""
    total: Amounts = {}
    for container in pod.get("containers") or ():
        for name, value in _of(container, kind).items():
            total[name] = total.get(name, Decimal(0)) + value
    for container in pod.get("initContainers") or ():
        for name, value in _of(container, kind).items():
            total[name] = max(total.get(name, Decimal(0)), value)
    return total


def _of(container: Mapping[str, Any], kind: str) -> Amounts:
    resources = container.get("resources") or {}
    limits = amounts(resources.get("limits"))
    return {**limits, **amounts(resources.get("requests"))} if kind == "requests" else limits


def times(number: int, given: Amounts) -> Amounts:
    """`number` pods' worth."""
    return {name: number * value for name, value in given.items()}


def show(name: str, value: Decimal) -> str:
    """The quantity as people read it: `cpu 120`, `memory 460Gi`."""
    if name.endswith(("memory", "storage")):
        return f"{name} {float(value / 2**30):.4g}Gi"
    return f"{name} {float(value):.4g}"


def lacking(wanted: Amounts, available: Amounts) -> list[str]:
    """Sentences like `memory 460Gi of 31Gi` for whatever is not enough."""
    return [
        f"{show(name, value)} of {show(name, available.get(name, Decimal(0))).removeprefix(name).strip()}"
        for name, value in wanted.items()
        if value > available.get(name, Decimal(0))
    ]
