"""One supervisor of a small training, as a program of its own: `python soak_training.py FOLDER PROCESSES STEPS [resume]`.

Started, killed and started again by `soak`. Prints one JSON line at its end: the account. `resume` resets an earlier verdict,
as a person's `resume` does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from steps.base import stage as base_stage
from steps.errors import JobError
from steps.job.local_launcher import LocalLauncher
from steps.job.supervise import Job, Outside, supervise
from steps.prepare import stage as prepare_stage
from steps.protocol.records import BaseModel, PreparedData
from steps.protocol.rundir import RunDir, read_json, write_json
from steps.settings.config import parse_options, parse_settings
from steps.settings.plan import Plan
from steps.settings.resolve import resolve
from steps.train import stage as train_stage

STEP_GAP_S = 20.0
SETTINGS = {
    "launcher": {"threads_per_process": 1},
    "checkpoints": {"every_steps": 2, "keep": 3},
    "retry": {"max_attempts": 10_000, "max_without_progress": 10_000, "delay_s": 0, "max_delay_s": 0},
    "deadlines": {"startup_s": 1800, "grace_s": 20, "step_gap_s": STEP_GAP_S},
    "validation": {"every_steps": 1000, "max_rows": 2},
}


def plan_for(folder: Path, processes: int, steps: int) -> Plan:
    """Tiny random model, built-in data, dropout on, fp32: the bits can be compared."""
    settings = parse_settings(
        {**SETTINGS, "storage": {"root": str(folder), "cache": str(folder / "cache"), "min_free_gib": 0}}
    )
    options = parse_options(
        {
            "model": "tiny",
            "max_steps": steps,
            "max_rows": 120,
            "global_batch": 4,
            "micro_batch": 1,
            "precision": "fp32",
            "lora_dropout": 0.1,
            "processes": processes,
        }
    )
    return resolve(settings, options)


def prepare(folder: Path, processes: int, steps: int) -> None:
    """Make the model and the data once; both soaked and straight runs use them."""
    plan = plan_for(folder, processes, steps)
    base = base_stage.fetch(plan.model, cache=folder / "cache", min_free_gib=0)
    prepared = prepare_stage.prepare(plan, base, RunDir(folder), cache=folder / "cache")
    write_json(folder / "inputs.json", {"base": base.to_dict(), "prepared": prepared.to_dict()})


def main(argv: list[str]) -> int:
    """Supervise to the end; 0 when there is a result, 3 when this supervisor gave up (a person would resume)."""
    folder, inputs, processes, steps = Path(argv[0]), Path(argv[1]), int(argv[2]), int(argv[3])
    raw = read_json(inputs / "inputs.json")
    plan = plan_for(folder, processes, steps)
    base, prepared = BaseModel.from_dict(raw["base"]), PreparedData.from_dict(raw["prepared"])
    spec, directory = train_stage.build(plan, base, prepared, RunDir(folder))
    job = Job(
        module=train_stage.WORKER,
        spec=spec.to_dict(),
        directory=directory,
        identity=spec.identity,
        total_steps=prepared.steps,
        processes=processes,
        threads_per_process=1,
        environment=train_stage.PROCESS_ENVIRONMENT,
    )
    try:
        result = supervise(
            job,
            LocalLauncher(grace_s=20),
            plan.settings,
            Outside(notice=lambda text: print(text, flush=True)),
            retry_permanent="resume" in argv,
        )
    except JobError as error:
        print(f"gave up: {error}", flush=True)
        return 3
    print(
        json.dumps({"adapter": str(result.result_dir), "attempts": result.attempts, "account": result.account}),
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
