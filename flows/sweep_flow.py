"""Many trainings from one file: each in a branch of its own, a leaderboard, and the best one merged and evaluated.

    python flows/sweep_flow.py run --sweep config/sweeps/demo.yaml
    python flows/sweep_flow.py run --sweep config/sweeps/demo.yaml --max-workers 1     one branch at a time
    python flows/sweep_flow.py resume                                                  only what has not come to its end

This file is the graph. What the file says is in steps/flow/sweep/grid.py, what the steps do in steps/flow/sweep/branches.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
if (CHECKOUT / "steps").is_dir():
    sys.path.insert(0, str(CHECKOUT))  # `python flows/sweep_flow.py` works without installing the project

from steps.flow.home import keep_records_in  # noqa: E402
from steps.settings.places import config_root, home  # noqa: E402
from steps.settings.places import package_sources as sources  # noqa: E402

keep_records_in(home(), os.environ)  # before Metaflow is imported

from metaflow import Config, FlowSpec, IncludeFile, card, current, package_sources, step  # noqa: E402

from steps.flow.decorator import pytorchjob  # noqa: E402
from steps.flow.deployment import deployed  # noqa: E402
from steps.flow.metaflow_internals import run_command_line  # noqa: E402
from steps.flow.parameters import clean_errors, read_config  # noqa: E402
from steps.flow.step_pods import step_pods  # noqa: E402
from steps.library_versions import without_torch  # noqa: E402


@deployed
@step_pods
@package_sources(sources(), suffixes=[".py", ".yaml", ".json", ".html", ".css"])
class SweepFlow(FlowSpec):
    """Train many adapters, keep the best."""

    config = Config("config", default=str(config_root() / "local.yaml"), parser=read_config)
    sweep = IncludeFile("sweep", required=True, is_text=True, help="The sweep's file: options, grid, runs.")

    @step
    def start(self) -> None:
        """Decide every branch, bring each base model here once."""
        from steps.flow.sweep import branches

        with clean_errors():
            self.branches, self.sweep_dir = branches.start(self.sweep, self.config.to_dict())
        self.next(self.prepare)

    @step
    def prepare(self) -> None:
        """Prepare each data setting once, for all branches that have it."""
        from steps.flow.sweep import branches

        without_torch(os.environ)
        with clean_errors():
            self.branches = branches.prepare(self.branches, self.sweep_dir)
        self.next(self.train, foreach="branches")

    @pytorchjob
    @step
    def train(self) -> None:
        """Train one branch's adapter."""
        from steps.flow.sweep import branches

        self.branch = self.input
        self.adapter, self.adapter_files, self.failed = branches.train(current.pytorchjob, self.branch)
        self.next(self.choose)

    @card(type="hyperpod_lora", id="leaderboard")
    @step
    def choose(self, inputs) -> None:  # type: ignore[no-untyped-def]
        """Rank the branches by their validation loss."""
        from steps.flow.sweep import branches

        ended = [(each.branch, each.adapter, each.failed) for each in inputs]
        with clean_errors():
            self.leaderboard, winner = branches.choose(current.card["leaderboard"], ended)
        self.branch, self.adapter, _ = ended[winner]
        self.plan, self.base, self.prepared, self.run_dir = (
            self.branch[name] for name in ("plan", "base", "prepared", "run_dir")
        )
        self.next(self.merge)

    @step
    def merge(self) -> None:
        """Add the winner's adapter to its base model's weights."""
        from steps.flow import stages

        without_torch(os.environ)
        with clean_errors():
            self.lineage = stages.lineage(self.plan, self.base, self.prepared, self.adapter)
            self.merged = stages.merge(self.plan, self.base, self.adapter, self.run_dir, self.lineage)
        self.next(self.evaluate)

    @card(type="hyperpod_lora", id="evaluation")
    @step
    def evaluate(self) -> None:
        """Compare base and winner on samples that no training saw."""
        from steps.flow import stages

        with clean_errors():
            self.report, self.lineage = stages.evaluate(
                current.card["evaluation"],
                self.plan,
                (self.base, self.prepared, self.adapter, self.merged),
                self.run_dir,
                self.lineage,
            )
        self.next(self.publish)

    @step
    def publish(self) -> None:
        """Hand the winner on, where the Config names a place and the gate is passed."""
        from steps.flow import stages

        without_torch(os.environ)
        if stages.after_evaluation(self.plan, self.report) == "publish":
            with clean_errors():
                made = (self.adapter, self.merged, self.report)
                self.published, self.lineage = stages.publish(self.plan, made, self.run_dir, self.lineage)
        self.next(self.end)

    @step
    def end(self) -> None:
        """Say what has won."""
        from steps.flow import stages
        from steps.flow.sweep import branches

        branches.end(self.branch)
        for each in self.branches:
            stages.end(each["run_dir"])
        stages.end(self.sweep_dir)


if __name__ == "__main__":
    run_command_line(SweepFlow)
