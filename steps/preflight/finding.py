"""What a check found, and the table of it that a person reads. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note", "ok"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note", "ok")
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the preflight."""

    check: str
    severity: Severity
    message: str
    fix: str = ""
    """What to do about it; empty where nothing has to be done."""


def ok(check: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, fix: str) -> Finding:
    """The run may start; someone should know."""
    return Finding(check, "warning", message, fix)


def note(check: str, message: str, fix: str) -> Finding:
    """Not looked at, as it should be: told to who asks for a preflight, not at the start of every run."""
    return Finding(check, "note", message, fix)


def error(check: str, message: str, fix: str) -> Finding:
    """The run would fail, or wait for ever."""
    return Finding(check, "error", message, fix)


def errors(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings that forbid to start."""
    return tuple(item for item in findings if item.severity == "error")


def table(findings: Sequence[Finding]) -> str:
    """Plain text: errors first, what to do below each, the counts last."""
    width = max((len(item.check) for item in findings), default=0)
    ordered = sorted(findings, key=lambda item: ORDER.index(item.severity))
    return "\n".join([*(line for item in ordered for line in _lines(item, width)), counts(findings)])


def counts(findings: Sequence[Finding]) -> str:
    """`1 error, 2 warnings, 9 ok`; notes only where there are some."""
    numbers = {severity: sum(item.severity == severity for item in findings) for severity in ORDER}
    return ", ".join(
        f"{number} {severity}{'s' if number != 1 and severity != 'ok' else ''}"
        for severity, number in numbers.items()
        if number or severity != "note"
    )


def _lines(item: Finding, width: int) -> list[str]:
    head, indent = f"{item.severity:<8} {item.check:<{width}}  ", " " * (width + 11)
    lines = _wrap(item.message, head, indent)
    return [*lines, *_wrap(item.fix, f"{indent}→ ", f"{indent}  ")] if item.fix else lines


def _wrap(text: str, first: str, rest: str) -> list[str]:
    """Lines of at most WIDTH; commands and paths are never broken."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]
