"""What a run's training is made of (plan, base model, prepared data), and the job that follows from it.

Called by `stages`, which keeps it as plan.json in the run directory, and by `jobspec`, which reads it there: so the same job can
be made without Metaflow. Nothing is started here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steps.errors import StorageError
from steps.protocol.records import BaseModel, PreparedData
from steps.protocol.run_options import how_to_continue
from steps.protocol.rundir import RunDir, read_json, write_json
from steps.settings.plan import Plan

if TYPE_CHECKING:
    from steps.job.job import Job
    from steps.train.spec import TrainSpec

SCHEMA = "hyperpod-lora/inputs/1"
FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that decides a training."""

    plan: Plan
    base: BaseModel
    prepared: PreparedData

    def save(self, run: RunDir) -> None:
        """Keep them in the run directory; the newest plan is the one that counts.

        Raises:
            StorageError: the disk refused.
        """
        raw = {"plan": self.plan.model_dump(mode="json"), "base": self.base.to_dict()}
        write_json(run.path / FILE, {"schema": SCHEMA, **raw, "prepared": self.prepared.to_dict()})

    def job(self, run: RunDir) -> tuple[TrainSpec, Job]:
        """The training, and how it is run.

        Raises:
            ConfigError, StorageError: as `train.stage.build`.
        """
        from steps.job.job import Job
        from steps.train import stage as train_stage

        plan = self.plan
        spec, directory = train_stage.build(plan, self.base, self.prepared, run)
        return spec, Job(
            module=train_stage.WORKER,
            spec=spec.to_dict(),
            directory=directory,
            identity=spec.identity,
            processes=plan.processes,
            nodes=plan.nodes,
            node_choices=plan.node_choices,
            threads_per_process=plan.settings.launcher.threads_per_process,
            environment=train_stage.process_environment(plan),
            needs_torchrun=train_stage.needs_torchrun(plan),
            notes=train_stage.notes(plan),
            label=f"{plan.model.name}-{plan.dataset.name}",
            total_steps=self.prepared.steps,
        )


def with_share_of(run: RunDir, plan: Plan) -> Plan:
    """The plan with the share that a continued run holds out, unless another was asked for: else it would be another training.

    Raises:
        StorageError: its plan is damaged.
    """
    if "validation_fraction" in plan.given or not (run.path / FILE).is_file():
        return plan
    before = read_json(run.path / FILE).get("plan", {}).get("validation_fraction", plan.validation_fraction)
    return plan.model_copy(update={"validation_fraction": before})


def read_inputs(run: RunDir) -> Inputs:
    """The inputs that a run directory keeps.

    Raises:
        StorageError: there are none, or they are damaged.
    """
    path = run.path / FILE
    if not path.is_file():
        raise StorageError(f"{path} is not there: that run has prepared no data; {_how_to_prepare(run.path)}")
    raw = read_json(path)
    try:
        if raw["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, found {raw['schema']!r}")
        plan = Plan.model_validate(raw["plan"])
        return Inputs(plan, BaseModel.from_dict(raw["base"]), PreparedData.from_dict(raw["prepared"]))
    except (KeyError, ValueError, TypeError) as error:
        raise StorageError(
            f"{path} cannot be read ({str(error)[:300]}): another version wrote it; {_how_to_prepare(run.path)}"
        ) from error


def _how_to_prepare(path: Path) -> str:
    return f"prepare again: {how_to_continue(path, '--dry-run')}"
