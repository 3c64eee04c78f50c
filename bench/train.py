"""Training against a plain transformers Trainer + peft script and against TRL's SFTTrainer: real tokens per second.

    python -m bench train                                    (about 4 minutes on 2 cores)
    python -m bench train --precision fp32 --processes 2

The same model, rows, precision, adapter, global batch and number of processes. Rows have Alpaca's shape and lengths. Every tool
runs in processes of its own, in turn; padding is not counted, the first steps are left out. `_train_peers` is what others do.
Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._report import report as show
from bench._rows import write_rows
from bench.prepare import fetch_model
from steps.base import stage as base_stage
from steps.prepare import stage as prepare_stage
from steps.protocol.events import Event, EventTail
from steps.protocol.rundir import RunDir
from steps.settings import config, resolve
from steps.settings.options import Options
from steps.train import stage
from steps.train.spec import TrainSpec

ROOT = Path(__file__).resolve().parents[1]
SEQUENCE_LENGTH = 512
WARM_UP = 2
"""Steps at the beginning that are not counted: buffers grow, kernels are chosen."""
DEFAULT_INTERVAL = 10
"""Steps between saves in a run of up to 100 steps: the shortest default."""
PLAIN, TRL = "plain Trainer + peft", "TRL's SFTTrainer"


@dataclass(frozen=True, slots=True)
class Case:
    """One training, prepared for all tools."""

    spec: TrainSpec
    rows: Path
    """Prepared, unpacked: what others start from."""
    processes: int

    @property
    def folder(self) -> Path:
        """Scratch of all tools."""
        return self.spec.place.path


@dataclass(frozen=True, slots=True)
class Speed:
    """What one run of ours showed."""

    tokens_per_s: float
    stall: float
    """Seconds of one save, divided by those between two saves."""


def main(argv: list[str]) -> int:
    """Measure in turn, print medians."""
    asked = parse(argv)
    with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:
        cases = make_cases(asked, Path(scratch))
        ours: dict[bool, list[Speed]] = {False: [], True: []}
        theirs: dict[tuple[str, bool], list[float]] = {("plain", False): [], ("trl", False): [], ("trl", True): []}
        for number in range(1, asked.rounds + 1):
            for packed, case in cases.items():
                ours[packed].append(run_ours(case, number))
            for (tool, packed), found in theirs.items():
                found.append(run_theirs(cases[packed], tool))
    report(asked, ours, {key: statistics.median(found) for key, found in theirs.items()})
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench train")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of each run; the first two are not counted")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of each process, theirs and ours; 0: cores / processes")
    parser.add_argument("--global-batch", type=int, default=4, help="rows of a step; packed: half as many")
    parser.add_argument("--model", default="smollm2-135m", help="a preset or a folder")
    parser.add_argument("--data", default="", help="JSON array of Alpaca rows; default: made-up rows")
    asked = parser.parse_args(argv)
    if asked.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}, got {asked.steps}")
    if asked.global_batch % (2 * asked.processes):
        parser.error(f"--global-batch must be a multiple of 2 × --processes, got {asked.global_batch}")
    return asked


def make_cases(asked: argparse.Namespace, scratch: Path) -> dict[bool, Case]:
    """Unpacked and packed, by whether it is packed."""
    rows = write_rows(scratch / "rows.jsonl", 1000, model=fetch_model(), data=asked.data)
    specs = {packed: make_spec(asked, rows, packed=packed) for packed in (False, True)}
    unpacked = Path(specs[False].prepared_path)
    return {packed: Case(spec, unpacked, asked.processes) for packed, spec in specs.items()}


def make_spec(asked: argparse.Namespace, rows: Path, *, packed: bool) -> TrainSpec:
    """Prepare the rows and decide the spec, as the flow does."""
    batch = asked.global_batch // 2 if packed else asked.global_batch
    options = Options(
        model=asked.model,
        dataset=str(rows),
        packing="on" if packed else "off",
        sequence_length=SEQUENCE_LENGTH,
        precision=asked.precision,
        max_steps=asked.steps,
        global_batch=batch,
        micro_batch=batch // asked.processes,
        processes=asked.processes,
        lora_targets="all-linear",
        gradient_checkpointing="off",
    )
    plan = resolve.resolve(config.Settings(), options)
    storage = plan.settings.storage
    cache = Path(storage.cache).expanduser()
    base = base_stage.fetch(plan.model, cache=cache, min_free_gib=storage.min_free_gib)
    run = RunDir(rows.parent / ("packed" if packed else "unpacked"))
    spec, place = stage.build(plan, base, prepare_stage.prepare(plan, base, run, cache=cache), run)
    place.path.mkdir()
    threads = asked.threads or max(1, len(os.sched_getaffinity(0)) // asked.processes)
    return spec.model_copy(
        update={"validation_rows": 0, "checkpoint_every": asked.steps, "threads_per_process": threads}
    )


def run_ours(case: Case, number: int) -> Speed:
    """Train once, in a directory of its own."""
    spec = case.spec.model_copy(update={"directory": f"{case.folder}-{number}"})
    spec.place.path.mkdir()
    spec.place.spec.write_text(json.dumps(spec.to_dict()))
    start(case, [stage.WORKER, str(spec.place.spec), "--attempt", "1"], stage.PROCESS_ENVIRONMENT)
    events = EventTail(spec.place.events(1)).read_new()
    steps = [event for event in events if event.kind == "step"]
    seconds = steps[-1].time_s - steps[WARM_UP - 1].time_s
    tokens = sum(event.data["tokens"] for event in steps[WARM_UP:])
    return Speed(tokens / seconds, stall(events, seconds / (len(steps) - WARM_UP)))


def stall(events: list[Event], step_s: float) -> float:
    """Share of the time between two saves that one takes; there is one save, after the last step."""
    (saved,) = (event.data["seconds"] for event in events if event.kind == "checkpoint")
    return float(saved) / (step_s * DEFAULT_INTERVAL)


def run_theirs(case: Case, tool: str) -> float:
    """Real tokens per second of another tool, over all ranks."""
    spec, path = case.spec, case.folder / "case.json"
    accumulation = spec.training.global_batch // (spec.training.micro_batch * case.processes)
    path.write_text(
        json.dumps(
            {
                "model": spec.base_path,
                "rows": str(case.rows),
                "packed": spec.packed,
                "steps": spec.steps,
                "micro_batch": spec.training.micro_batch,
                "accumulation": accumulation,
                "learning_rate": spec.training.learning_rate,
                "precision": spec.training.precision,
                "sequence_length": spec.sequence_length,
                "rank": spec.training.lora.rank,
                "alpha": spec.training.lora.alpha,
            }
        )
    )
    start(case, ["bench._train_peers", tool, str(path)], {})
    found: list[dict[str, Any]] = [
        json.loads((case.folder / f"{tool}-{rank}.json").read_text()) for rank in range(case.processes)
    ]
    ends_s = found[0]["ends_s"]
    counted = slice(WARM_UP * accumulation, len(ends_s) * accumulation)
    tokens = sum(sum(rank["tokens"][counted]) for rank in found)
    return float(tokens / (ends_s[-1] - ends_s[WARM_UP - 1]))


def start(case: Case, module: list[str], environment: dict[str, str]) -> None:
    """Run a module alone or under torchrun; its output is shown only if it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    command = [sys.executable, *(launcher if case.processes > 1 else []), "-m", *module]
    threads = str(case.spec.threads_per_process)
    given = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **environment,
    }
    done = subprocess.run(command, cwd=case.folder, env=given, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(module)} ended with exit code {done.returncode}")


def report(asked: argparse.Namespace, ours: dict[bool, list[Speed]], theirs: dict[tuple[str, bool], float]) -> None:
    """One line for each comparison."""
    how = f"{asked.precision}, {asked.processes} process{'es' if asked.processes > 1 else ''}"
    speed = {packed: statistics.median(run.tokens_per_s for run in runs) for packed, runs in ours.items()}
    for packed, title, other, goal in (
        (False, f"unpacked against {PLAIN}", theirs["plain", False], "ratio >= 1.0"),
        (False, f"unpacked against {TRL}", theirs["trl", False], "ratio >= 1.0"),
        (True, f"packed against {PLAIN}, which pads", theirs["plain", False], "ratio >= 1.3"),
        (True, f"packed against {TRL}, packing", theirs["trl", True], "ratio >= 1.3"),
    ):
        show(f"training, {how}: {title}", speed[packed], other, unit="real tokens/s", goal=goal)
    share = statistics.median(run.stall for run in ours[False])
    what = f"checkpoint, {how}: share of the {DEFAULT_INTERVAL} steps between saves"
    show(what, share, unit="share", goal="ours < 0.02")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
