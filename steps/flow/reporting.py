"""What the flow tells trackers and people: the training while it runs, and what the evaluation found."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import ConfigError, Problem, StorageError
from steps.flow import lineage, metaflow_internals
from steps.flow.terminal import say
from steps.protocol.records import Adapter, PreparedData, Report
from steps.report import choose
from steps.report.notices import Notice
from steps.report.reporter import Reporter
from steps.report.sink import Facts, ReportError, key_of

if TYPE_CHECKING:
    from steps.settings.plan import Plan

UI = "METAFLOW_UI_URL"
"""Metaflow's own variable: the address of its user interface."""


def facts_of(plan: Plan, prepared: PreparedData, folder: Path) -> Facts:
    """Which training is told of; `folder` is its directory, which keeps its name through attempts and resumes."""
    pathspec = metaflow_internals.pathspec()
    ui = os.environ.get(UI, "").rstrip("/")
    settings: dict[str, object] = {"training": plan.training.model_dump(mode="json"), "data.source": prepared.source}
    return Facts(
        key=key_of(folder),
        folder=folder,
        model=plan.model.name,
        dataset=plan.dataset.name,
        namespace=plan.settings.cluster.namespace if plan.settings.is_on_cluster else "",
        steps=prepared.steps,
        values=lineage.flat_text(settings),
        data_digest=prepared.digest,
        links={"metaflow": f"{ui}/{pathspec}" if ui else pathspec},
    )


def tag(plan: Plan, state: str, report: Report | None = None) -> None:
    """Make the run findable by what it trains and where it is."""
    former = lineage.CHANGING_TAGS if report else lineage.CHANGING_TAGS[:1]
    metaflow_internals.tag_run(lineage.tags(plan, state, report), instead_of=former)


def links(made_from: Mapping[str, Any]) -> dict[str, str]:
    """Where the runs that a lineage names stand in the Metaflow UI, if there is one."""
    return lineage.links(made_from, os.environ.get(UI, ""))


def check(plan: Plan) -> None:
    """Whether all that is to be told has an address.

    Raises:
        ConfigError: with every one that is missing.
    """
    found = choose.problems(plan.settings.reporting, os.environ)
    if found:
        raise ConfigError([Problem(where, what) for where, what in found])


def reporter_of(plan: Plan, prepared: PreparedData, folder: Path) -> Reporter:
    """What tells of this training."""
    facts = facts_of(plan, prepared, folder)
    return Reporter(folder, choose.sinks_of(plan.settings.reporting, facts, os.environ))


def tell_evaluation(plan: Plan, prepared: PreparedData, adapter: Adapter, report: Report) -> None:
    """Scores and gate to the trackers, and to people where the gate is not passed. What cannot be told is said, and no more."""
    reporting = plan.settings.reporting
    facts = facts_of(plan, prepared, Path(adapter.path).parent)
    mlflow = choose.mlflow_of(reporting, facts, os.environ)
    notices = choose.notices_of(reporting, facts, os.environ)
    numbers = {
        "evaluation/base_score": report.base_score,
        "evaluation/tuned_score": report.tuned_score,
        "evaluation/base_loss": report.base_loss,
        "evaluation/tuned_loss": report.tuned_loss,
    }
    gate = "passed" if report.gate_passed else "failed"
    try:
        if mlflow:
            mlflow.log_evaluation(numbers, {"gate": gate, "score": report.score_name}, time.time())
        if notices and not report.gate_passed:
            notices.say(Notice("gate_failed", f"the gate is not passed: {report.gate}", adapter.attempts, numbers))
    except (ReportError, StorageError, OSError) as error:
        say(f"what the evaluation found could not be told: {error}")
