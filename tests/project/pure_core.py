"""Hold the measured branch coverage against what is promised: 100 % of the pure core, 90 % of all. Run by `make coverage`.

The pure core is every module whose docstring says that it is pure; it needs no list that could be forgotten.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import coverage

PROJECT = Path(__file__).resolve().parents[2]
PURE = re.compile(r"\bPure\b|\bpure (?!reading)|\bpure,")
WHOLE, PURE_CORE = 90.0, 100.0
"""Percent of lines and branches."""


def is_pure(path: Path) -> bool:
    """Whether a module says so of itself; what a package says is about its modules."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return path.name != "__init__.py" and bool(PURE.search(docstring))


def pure_modules() -> list[str]:
    """Their paths, as coverage knows them."""
    return [str(path) for path in sorted((PROJECT / "steps").rglob("*.py")) if is_pure(path)]


def main() -> int:
    """Report both; 1 if either is below what is promised."""
    measured = coverage.Coverage(config_file=str(PROJECT / "pyproject.toml"))
    measured.load()
    whole = measured.report(skip_covered=True)
    core = measured.report(include=pure_modules(), show_missing=True)
    print(f"all: {whole:.2f} % (at least {WHOLE:.0f}); pure core: {core:.2f} % (at least {PURE_CORE:.0f})")
    return int(whole < WHOLE or core < PURE_CORE)


if __name__ == "__main__":
    sys.exit(main())
