"""The publish step: what is looked at before the run, and what is said and written down after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import ConfigError, Problem
from steps.flow import lineage, metaflow_internals, reporting
from steps.flow.terminal import StageProgress, say
from steps.protocol.records import Published, Report
from steps.protocol.rundir import LINEAGE, RunDir, write_json

if TYPE_CHECKING:
    from steps.publish.stage import Made
    from steps.settings.plan import Plan


def check(plan: Plan) -> None:
    """Whether the model could be handed on, before anything is fetched or trained.

    Raises:
        ConfigError: with everything that is known to be wrong.
    """
    if not plan.settings.publish.is_wanted:
        return
    from steps.publish.check import problems
    from steps.report.choose import mlflow_address

    if found := problems(plan.settings.publish, mlflow_address(plan.settings.reporting, os.environ), os.environ):
        raise ConfigError([Problem(where, what) for where, what in found])


def follows(plan: Plan, report: Report) -> bool:
    """Whether the publish step is next; says why not, where it was asked for."""
    if not plan.settings.publish.is_wanted:
        return False
    if not report.gate_passed:
        say("nothing is published, since the gate is not passed")
    return report.gate_passed


def publish(plan: Plan, made: Made, run: RunDir) -> tuple[Published, dict[str, Any]]:
    """Hand the model on; the record, and the lineage with where it lies now.

    Raises:
        LoraFlowError: see `steps.publish.stage`.
    """
    from steps.publish import stage

    published = stage.publish(plan, made, run, progress=StageProgress())
    told = lineage.with_addresses(made.lineage, published)
    for folder in (made.merged.path, made.adapter.path):
        write_json(Path(folder) / LINEAGE, told)
    reporting.tag(plan, "done")
    metaflow_internals.tag_run([f"published:{published.name}/{published.digest[:12]}"], instead_of=["published:"])
    for line in describe(published, made.run):
        say(line)
    return published, told


def describe(published: Published, run: str) -> list[str]:
    """Where it lies, in sentences."""
    earlier = "" if published.run == run else f" (equal files were published by {published.run})"
    places = {**published.addresses, **published.versions}
    return [f"published: {place}, {name}{earlier if place == 's3' else ''}" for place, name in places.items()]
