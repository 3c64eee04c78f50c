"""The table's column on generation: architecture → words; what is missing is "not measured"."""

from __future__ import annotations

GENERATION: dict[str, str] = {}
