"""Prepare against TRL's SFTTrainer preparation: rows per second, packing, and memory from 50,000 to 500,000 rows.

    python -m bench prepare                                        (made-up rows of Alpaca's shape and lengths)
    python -c "import sys; from bench.prepare import main; main(sys.argv[1:])" --data alpaca.json --model FOLDER

Ours is the whole stage (read, format, tokenise, split, pack, write, fsync) in a process of its own, imports left out; theirs is
TRL's `_prepare_dataset` with packing on rows that are already loaded, on fewer rows, since it takes the same time for each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from steps import config, presets, records, rundir
from steps.base import stage as base_stage
from steps.prepare import stage as prepare_stage
from steps.prepare.conversations import find_layout, to_conversation
from steps.prepare.tokens import ChatTokenizer

SEQUENCE_LENGTH = 1024
COMPARED_ROWS = 300
"""Rows whose tokens are compared one by one."""
FLAT = (50_000, 500_000)


def main(argv: list[str]) -> int:
    """Measure and print one JSON object a line."""
    given = parse(argv)
    if given.child:
        print(json.dumps(prepare_once(Path(given.child), Path(given.model))))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as scratch:
        model = Path(given.model) if given.model else fetch_model()
        file = write_rows(Path(scratch, "rows.jsonl"), given.rows, given.data)
        measured: list[tuple[dict[str, float], float]] = []
        for _ in range(given.runs):  # in turn, so that both see the same noise
            measured.append((run_ours(file, model), time_theirs(file, model, given.peer_rows)))
        report_speed(measured, given.rows)
        report("prepare: rows whose token ids equal TRL's", *compare(file, model), unit="rows", goal="all")
        if given.memory:
            report_memory(Path(scratch), model, given.data)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.prepare")
    parser.add_argument("--rows", type=int, default=52_002)
    parser.add_argument("--peer-rows", type=int, default=3_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", default="", help="JSON array of Alpaca rows to repeat; default: made-up rows")
    parser.add_argument("--model", default="", help="folder with a tokenizer; default: the preset smollm2-135m")
    parser.add_argument("--memory", action="store_true", help="also 50,000 against 500,000 rows (minutes)")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def fetch_model() -> Path:
    """The demo's base model."""
    plan = presets.resolve(config.Settings(), config.Options())
    storage = plan.settings.storage
    return Path(base_stage.fetch(plan.model, cache=Path(storage.cache), min_free_gib=storage.min_free_gib).path)


def write_rows(path: Path, count: int, data: str) -> Path:
    """`count` rows with a counter before each instruction, so that no two are the same."""
    rows = json.loads(Path(data).read_text()) if data else [make_row(number) for number in range(1000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            file.write(json.dumps({**row, "instruction": f"{number} {row['instruction']}"}) + "\n")
    return path


def make_row(number: int) -> dict[str, str]:
    """Words of a Zipf-like frequency, as many as Alpaca's rows have (a log-normal; about 170 tokens in all)."""
    rng = random.Random(number)

    def say(mean: float) -> str:
        words = (
            f"{chr(97 + int(rng.paretovariate(0.6)) % 26)}{int(rng.paretovariate(0.9)) % 9000:x}word"
            for _ in range(min(500, int(rng.lognormvariate(mean, 0.7)) + 1))
        )
        return " ".join(words)

    return {"instruction": say(2.2), "input": "", "output": say(3.2)}


def run_ours(file: Path, model: Path) -> dict[str, float]:
    """The whole stage in a fresh process: seconds, fill, peak MiB."""
    code = "import sys; from bench.prepare import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--child", str(file), "--model", str(model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare_once(file: Path, model: Path) -> dict[str, float]:
    """In the child; what it imports is loaded before the clock starts."""
    for name in ("jinja2.sandbox", "jinja2.ext", "pyarrow", "tokenizers"):
        importlib.import_module(name)
    options = config.Options(dataset=str(file), packing="on", sequence_length=SEQUENCE_LENGTH)
    plan = presets.resolve(config.Settings(), options)
    base = records.BaseModel(
        name="bench", path=str(model), source="", revision="", digest="", model_type="", parameters=0, bytes=0, dtype=""
    )
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        begin = time.perf_counter()
        record = prepare_stage.prepare(plan, base, rundir.RunDir(Path(folder)), cache=Path(folder))
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": seconds, "fill": record.fill, "peak_mib": peak / 1024}


def conversational(file: Path, count: int) -> list[dict[str, list[dict[str, str]]]]:
    """The first rows as TRL wants them: prompt and completion, each a list of messages."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        found.append(
            {
                "prompt": [{"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": row["output"]}],
            }
        )
    return found


def prepare_theirs(file: Path, model: Path, count: int, *, packing: bool) -> tuple[Any, float]:
    """TRL's prepared data set and the seconds it took."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = datasets.Dataset.from_list(conversational(file, count))
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(folder, max_length=SEQUENCE_LENGTH, packing=packing, bf16=False, use_cpu=True)
        trainer = SimpleNamespace(_is_vlm=False, completion_only_loss=True)
        begin = time.perf_counter()
        made = SFTTrainer._prepare_dataset(trainer, rows, tokenizer, settings, packing, None, "train")
        return made, time.perf_counter() - begin


def time_theirs(file: Path, model: Path, count: int) -> float:
    """Rows per second."""
    return count / prepare_theirs(file, model, count, packing=True)[1]


def compare(file: Path, model: Path) -> tuple[int, int]:
    """(rows whose ids are equal, rows compared)."""
    theirs, _ = prepare_theirs(file, model, COMPARED_ROWS, packing=False)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:COMPARED_ROWS]]
    tokenizer = ChatTokenizer.load(model)
    layout = find_layout(rows[0])
    rendered = [tokenizer.render(to_conversation(row, layout)) for row in rows]  # type: ignore[arg-type]
    ours = [np.frombuffer(tokens.ids, np.int32).tolist()[:SEQUENCE_LENGTH] for tokens in tokenizer.encode(rendered)]
    return sum(one == other["input_ids"] for one, other in zip(ours, theirs, strict=True)), len(rows)


def report_speed(measured: list[tuple[dict[str, float], float]], rows: int) -> None:
    """Medians over the runs, and the median of each run's own ratio."""
    speeds = [rows / ours["seconds"] for ours, _ in measured]
    theirs = [speed for _, speed in measured]
    ratio = statistics.median(one / other for one, other in zip(speeds, theirs, strict=True))
    what = f"prepare: {rows} Alpaca-shaped rows, TRL's SFTTrainer preparation"
    report(
        what,
        round(statistics.median(speeds)),
        round(statistics.median(theirs)),
        unit="rows/s",
        ratio=ratio,
        goal=">= 10",
    )
    fill = statistics.median(ours["fill"] for ours, _ in measured)
    report(f"packing at {SEQUENCE_LENGTH}: share of real tokens", fill, None, unit="share", goal=">= 0.99")


def report_memory(scratch: Path, model: Path, data: str) -> None:
    """Peak memory and time of ten times the rows."""
    small, large = (run_ours(write_rows(scratch / f"{count}.jsonl", count, data), model) for count in FLAT)
    what = f"prepare: {FLAT[1]} rows against {FLAT[0]}"
    report(f"{what}, peak memory", large["peak_mib"], small["peak_mib"], unit="MiB", goal="<= 1.1")
    report(f"{what}, time", large["seconds"], small["seconds"], unit="s", goal="<= 10.5")


def report(
    what: str, ours: float, theirs: float | None, *, unit: str, ratio: float | None = None, goal: str = ""
) -> None:
    """One line for `bench`."""
    if ratio is None and theirs:
        ratio = ours / theirs
    rounded = None if ratio is None else round(ratio, 2)
    print(
        json.dumps({"what": what, "ours": ours, "theirs": theirs, "ratio": rounded, "unit": unit, "goal": goal}),
        flush=True,
    )
