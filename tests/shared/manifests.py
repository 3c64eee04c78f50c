"""A planned job's manifest, and whether it is the golden one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from steps.cli.view.manifest_text import planned
from steps.pytorchjob import manifest as pytorchjob
from steps.settings.places import project_root
from steps.settings.plan import Plan


def manifest_of(plan: Plan) -> dict[str, Any]:
    made = planned(plan)
    return pytorchjob.build(made.spec, made.job, 1)


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    found: list[dict[str, Any]] = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    (container,) = found
    return container


def environment_of(manifest: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container_of(manifest)["env"] if "value" in item}


def require_golden(manifest: dict[str, Any], golden: Path) -> None:
    """UPDATE_GOLDEN=1 writes it anew: then read the difference."""
    container_of(manifest)["command"][-1] = "<steps/job/agent/bootstrap.py>"
    raw = yaml.safe_dump(manifest, sort_keys=False, width=120).replace(str(project_root()), "<project>")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(raw)
    assert yaml.safe_load(raw) == yaml.safe_load(golden.read_text())
