"""Fine-tune a language model with LoRA: prepare → train → merge → evaluate, every stage a versioned artifact.

    python flows/lora_flow.py run                                        on this machine, a demo in a few minutes
    python flows/lora_flow.py run --model llama3.2-1b --dataset my.jsonl
    python flows/lora_flow.py run --help                                 all options
    python flows/lora_flow.py resume                                     go on where the last run stopped

This file is the graph: wiring only. What each stage does is in steps/, what the words mean is in the README.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
if (CHECKOUT / "steps").is_dir():
    sys.path.insert(0, str(CHECKOUT))  # `python flows/lora_flow.py` works without installing the project

from steps.flow.home import keep_records_in  # noqa: E402
from steps.settings.places import config_root, home  # noqa: E402
from steps.settings.places import package_sources as sources  # noqa: E402

keep_records_in(home(), os.environ)  # before Metaflow is imported

from metaflow import Config, FlowSpec, card, current, package_sources, step  # noqa: E402

from steps.flow.decorator import pytorchjob  # noqa: E402
from steps.flow.deployment import announce, deployed  # noqa: E402
from steps.flow.metaflow_internals import run_command_line  # noqa: E402
from steps.flow.parameters import clean_errors, option_parameters, read_config  # noqa: E402
from steps.flow.step_pods import step_pods  # noqa: E402
from steps.library_versions import without_torch  # noqa: E402


@option_parameters
@deployed
@step_pods
@package_sources(sources(), suffixes=[".py", ".yaml", ".json", ".html", ".css"])
class LoraFlow(FlowSpec):
    """Fine-tune a language model with LoRA and show what it learned."""

    config = Config("config", default=str(config_root() / "local.yaml"), parser=read_config)

    @step
    def start(self) -> None:
        """Decide every setting, check it against the model, bring the base model here."""
        from steps.flow import stages

        with clean_errors():
            self.plan, self.base, self.run_dir = stages.start(self, self.config.to_dict())
        self.next(self.prepare)

    @step
    def prepare(self) -> None:
        """Turn the data set into tokenised rows and a fixed order; say what training will cost."""
        from steps.flow import stages

        without_torch(os.environ)
        with clean_errors():
            self.plan, self.prepared = stages.prepare(self.plan, self.base, self.run_dir)
        self.then = "stop" if self.dry_run else "train"
        self.next({"train": self.train, "stop": self.end}, condition="then")

    @pytorchjob
    @step
    def train(self) -> None:
        """Train the adapter, on however many workers, through whatever happens."""
        from steps.flow import stages

        self.adapter, self.adapter_files = stages.train(
            current.pytorchjob, self.plan, self.base, self.prepared, self.run_dir
        )
        self.next(self.merge)

    @step
    def merge(self) -> None:
        """Add the adapter to the base model's weights."""
        from steps.flow import stages

        without_torch(os.environ)
        with clean_errors():
            self.lineage = stages.lineage(self.plan, self.base, self.prepared, self.adapter)
            self.merged = stages.merge(self.plan, self.base, self.adapter, self.run_dir, self.lineage)
        self.next(self.evaluate)

    @card(type="hyperpod_lora", id="evaluation")
    @step
    def evaluate(self) -> None:
        """Compare base and tuned model on samples that training never saw."""
        from steps.flow import stages

        with clean_errors():
            self.report, self.lineage = stages.evaluate(
                current.card["evaluation"],
                self.plan,
                (self.base, self.prepared, self.adapter, self.merged),
                self.run_dir,
                self.lineage,
            )
        self.then = stages.after_evaluation(self.plan, self.report)
        self.next({"publish": self.publish, "compile": self.compile, "stop": self.end}, condition="then")

    @step
    def publish(self) -> None:
        """Hand on the model that passed the gate: only where the config names a place, and nothing is ever half visible."""
        from steps.flow import stages

        without_torch(os.environ)
        with clean_errors():
            self.published, self.lineage = stages.publish(
                self.plan, (self.adapter, self.merged, self.report), self.run_dir, self.lineage
            )
        self.then = stages.after_publishing(self.plan)
        self.next({"compile": self.compile, "stop": self.end}, condition="then")

    @pytorchjob
    @step
    def compile(self) -> None:
        """Compile the merged model for Neuron cores, or say why not."""
        from steps.flow import stages

        self.compiled = stages.compile_merged(current.pytorchjob, self.plan, self.merged, self.run_dir)
        self.next(self.end)

    @step
    def end(self) -> None:
        """Say in plain words what was learned and where it lies."""
        from steps.flow import stages, summary

        summary.conclude(self)
        announce(self)
        stages.end(self.run_dir)


if __name__ == "__main__":
    run_command_line(LoraFlow)
