"""One supervisor of a job on the cluster, as a program of its own, so that a test can kill it.

    python supervise_on_cluster.py PLAN.json [resume]

PLAN: folder (on the shared file system), settings, nodes, processes, and either `play` (see play_worker) or `training` (steps;
the folder then holds what `prepare_training` made); with `around`, not the training itself but the job before it (`precompile`)
or one that compiles the base model for inference in its place (`compile`). Prints sentences, and at its end one JSON line: the
result, or the error.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from steps.errors import LoraFlowError  # noqa: E402
from steps.export.compile import CompileRequest  # noqa: E402
from steps.flow import launchers, neuron_jobs  # noqa: E402
from steps.job.job import Job  # noqa: E402
from steps.job.supervise import Outside, supervise  # noqa: E402
from steps.protocol.events import Event  # noqa: E402
from steps.protocol.records import BaseModel, PreparedData  # noqa: E402
from steps.protocol.rundir import RunDir, TrainDir, read_json, write_json  # noqa: E402
from steps.pytorchjob import pod_template  # noqa: E402
from steps.pytorchjob.spec import Code  # noqa: E402
from steps.settings.config import Settings, parse_options, parse_settings  # noqa: E402
from steps.settings.resolve import resolve  # noqa: E402


def archive_code(folder: Path) -> Code:
    """The sources and the playing worker, as a code package would hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "code.tgz"
    if not path.exists():
        beside = folder / f".code.{time.monotonic_ns()}"
        with tarfile.open(beside, "w:gz") as packed:
            for name in ("steps", "config"):
                packed.add(ROOT / name, name, filter=lambda item: None if "__pycache__" in item.name else item)
            packed.add(ROOT / "tests" / "job" / "play_worker.py", "play_worker.py")
        beside.rename(path)
    return Code(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def play_job(plan: dict[str, Any]) -> Job:
    """A job that plays a training."""
    directory = TrainDir(Path(plan["folder"]) / "train-play")
    spec = {"schema": "play", "directory": str(directory.path), "play": plan["play"]}
    return Job(
        "play_worker",
        spec,
        directory,
        "play",
        int(plan["play"]["steps"]),
        processes=int(plan.get("processes", 1)),
        nodes=int(plan["nodes"]),
        node_choices=tuple(plan.get("node_choices", ())),
        threads_per_process=1,
        label=str(plan.get("label", "tiny-play")),
    )


def prepare_training(plan: dict[str, Any], settings: Settings) -> None:
    """Tiny random model and built-in data, once."""
    from steps.base import stage as base_stage
    from steps.prepare import stage as prepare_stage

    folder = Path(plan["folder"])
    made = resolve(settings, parse_options(plan["training"]))
    base = base_stage.fetch(made.model, cache=folder / "cache", min_free_gib=0)
    prepared = prepare_stage.prepare(made, base, RunDir(folder), cache=folder / "cache")
    write_json(folder / "inputs.json", {"base": base.to_dict(), "prepared": prepared.to_dict()})


def train_job(plan: dict[str, Any], settings: Settings) -> Job:
    """The real training of what `prepare_training` made."""
    from steps.train import stage as train_stage

    folder = Path(plan["folder"])
    raw = read_json(folder / "inputs.json")
    made = resolve(settings, parse_options(plan["training"]))
    base, prepared = BaseModel.from_dict(raw["base"]), PreparedData.from_dict(raw["prepared"])
    spec, directory = train_stage.build(made, base, prepared, RunDir(folder))
    return Job(
        train_stage.WORKER,
        spec.to_dict(),
        directory,
        spec.identity,
        prepared.steps,
        processes=made.processes,
        nodes=made.nodes,
        node_choices=made.node_choices,
        threads_per_process=1,
        environment=dict(train_stage.PROCESS_ENVIRONMENT),
        label=str(plan.get("label", "tiny-orders")),
    )


def job_around(plan: dict[str, Any], settings: Settings, training: Job) -> tuple[Job, Settings]:
    """The precompile job of a training, or the compile job, as `neuron_jobs` makes them."""
    if plan["around"] == "precompile":
        return neuron_jobs.precompile_job(training), neuron_jobs.patient(settings)
    base: Any = BaseModel.from_dict(read_json(Path(plan["folder"]) / "inputs.json")["base"])
    made = resolve(settings, parse_options(plan["training"]))
    dtype = str(read_json(Path(base.path) / "config.json").get("dtype", "float32"))
    request = CompileRequest(1, 64, 1, "trn1.32xlarge", dtype)
    return neuron_jobs.compile_job(made, base, request, RunDir(Path(plan["folder"])), "base"), settings


def inject(command: list[str]) -> None:
    """Add a container to every worker's pod, as a webhook of a service mesh does."""
    template = pod_template.template

    def with_sidecar(*given: Any, **named: Any) -> dict[str, Any]:
        made = template(*given, **named)
        image = made["spec"]["containers"][0]["image"]
        made["spec"]["containers"].append({"name": "proxy", "image": image, "command": command})
        return made

    pod_template.template = with_sidecar


def main(argv: list[str]) -> int:
    """Supervise to the end; 0 with a result, 3 when this supervisor gave up."""
    os.umask(0)  # the pods run as another user
    plan = read_json(Path(argv[0]))
    pod_template.CONTAINER = plan.get(
        "container_name", pod_template.CONTAINER
    )  # another name, which the operator ignores in silence
    if "sidecar" in plan:
        inject(plan["sidecar"])
    settings = parse_settings(plan["settings"])
    if "training" in plan and not (Path(plan["folder"]) / "inputs.json").exists():
        prepare_training(plan, settings)
    job = train_job(plan, settings) if "training" in plan else play_job(plan)
    if "around" in plan:
        job, settings = job_around(plan, settings, job)
    run = f"E2e/{Path(plan['folder']).name}"
    spec = launchers.spec_of(settings, run=run, step="train", code=archive_code(Path(plan["folder"])))

    def say(text: str) -> None:
        print(f"{time.time():.2f} {text}", flush=True)

    def observe(event: Event) -> None:
        say(f"event {event.kind} {event.step} {json.dumps(event.data)[:300]}")

    launcher = launchers.cluster_launcher(launchers.connect(settings, notice=say), spec, notice=say)
    say("begins")
    try:
        result = supervise(
            job,
            launcher,
            settings,
            Outside(notice=say, observe=observe),
            retry_permanent="resume" in argv,
            lease_s=settings.cluster.lease_s,
        )
    except LoraFlowError as error:
        print(
            json.dumps({"error": type(error).__name__, "headline": error.headline, "message": str(error)}), flush=True
        )
        return 3
    say("is over")
    told = {
        "adapter": str(result.result_dir),
        "attempts": result.attempts,
        "step": result.step,
        "account": result.account,
    }
    print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
