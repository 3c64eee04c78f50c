"""Prepare against TRL's SFTTrainer preparation: rows per second, equal tokens, packing; how time and memory grow.

    python -m bench prepare
    python -m bench prepare --data alpaca.json --model FOLDER     (real rows, repeated behind a counter)
    python -m bench prepare --growth                              (5,000 to 500,000 rows)

Ours is the whole stage (read, format, tokenise, split, pack, write, fsync) in a process of its own, imports left out; theirs is
TRL's `_prepare_dataset` with packing on rows that are already loaded, on fewer rows, since it takes the same time for each; with
one process and with two, of which the quicker counts.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import multiprocessing
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

from bench._report import report
from bench._rows import write_rows
from steps.base import stage as base_stage
from steps.prepare import stage as prepare_stage
from steps.prepare.chat.conversations import to_conversation
from steps.prepare.chat.forms import find_layout
from steps.prepare.tokenize.tokens import ChatTokenizer
from steps.protocol import records, rundir
from steps.settings import config, resolve
from steps.settings.options import Options

SEQUENCE_LENGTH = 1024
COMPARED_ROWS = 300
"""Rows whose tokens are compared one by one."""
GROWTH = (5_000, 50_000, 500_000)


def main(argv: list[str]) -> int:
    """Measure and print one JSON object a line."""
    given = parse(argv)
    model = Path(given.model) if given.model else fetch_model()
    if given.child:
        print(json.dumps(prepare_once(Path(given.child), model)))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as scratch:
        if given.growth:
            report_growth(Path(scratch), model, given.data)
        else:
            file = make_file(Path(scratch, "rows.jsonl"), given.rows, model, given.data)
            report_speed(file, model, given)
            equal, compared = compare(file, model)
            report("prepare: rows whose token ids equal TRL's", equal, compared, unit="rows", goal="ratio >= 1")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench prepare")
    parser.add_argument("--rows", type=int, default=52_002)
    parser.add_argument("--peer-rows", type=int, default=4_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", default="", help="JSON array of Alpaca rows to repeat; default: made-up rows")
    parser.add_argument("--model", default="", help="folder with a tokenizer; default: the preset smollm2-135m")
    parser.add_argument("--growth", action="store_true", help="time and memory from 5,000 to 500,000 rows (minutes)")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def make_file(path: Path, count: int, model: Path, data: str) -> Path:
    """The rows, written by another process: a child's peak memory begins at its parent's."""
    arguments = {"model": model, "data": data}
    writer = multiprocessing.get_context("spawn").Process(target=write_rows, args=(path, count), kwargs=arguments)
    writer.start()
    writer.join()
    if writer.exitcode:
        raise RuntimeError(f"writing {path} failed")
    return path


def fetch_model() -> Path:
    """The demo's base model."""
    plan = resolve.resolve(config.Settings(), Options())
    storage = plan.settings.storage
    return Path(base_stage.fetch(plan.model, cache=Path(storage.cache), min_free_gib=storage.min_free_gib).path)


def run_ours(file: Path, model: Path) -> dict[str, float]:
    """The whole stage in a fresh process: seconds, fill, peak MiB."""
    code = "import sys; from bench.prepare import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--child", str(file), "--model", str(model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare_once(file: Path, model: Path) -> dict[str, float]:
    """In the child; what it imports is loaded before the clock starts."""
    for name in ("transformers.utils.chat_template_utils", "pyarrow", "tokenizers"):
        importlib.import_module(name)
    options = Options(dataset=str(file), packing="on", sequence_length=SEQUENCE_LENGTH)
    plan = resolve.resolve(config.Settings(), options)
    base = records.BaseModel(
        name="bench", path=str(model), source="", revision="", digest="", model_type="", parameters=0, bytes=0, dtype=""
    )
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        begin, used = time.perf_counter(), cpu_s()
        record = prepare_stage.prepare(plan, base, rundir.RunDir(Path(folder)), cache=Path(folder))
        seconds, used = time.perf_counter() - begin, cpu_s() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": seconds, "cpu_s": used, "fill": record.fill, "peak_mib": peak / 1024}


def cpu_s() -> float:
    """Processor time of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


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


def prepare_theirs(
    file: Path, model: Path, count: int, *, packing: bool, processes: int | None = None
) -> tuple[Any, float, float]:
    """TRL's prepared data set, the seconds it took and those of processor time."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = datasets.Dataset.from_list(conversational(file, count))
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder,
            max_length=SEQUENCE_LENGTH,
            packing=packing,
            bf16=False,
            use_cpu=True,
            dataset_num_proc=processes,
        )
        trainer = SimpleNamespace(completion_only_loss=True, chat_template=None)
        begin, used = time.perf_counter(), cpu_s()
        made = SFTTrainer._prepare_dataset(trainer, rows, tokenizer, settings, packing, None, "train")
        return made, time.perf_counter() - begin, cpu_s() - used


def compare(file: Path, model: Path) -> tuple[int, int]:
    """(rows whose ids are equal, rows compared)."""
    theirs = prepare_theirs(file, model, COMPARED_ROWS, packing=False)[0]
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:COMPARED_ROWS]]
    tokenizer = ChatTokenizer.load(model)
    layout = find_layout(rows[0])
    rendered = [tokenizer.render(to_conversation(row, layout)) for row in rows]  # type: ignore[arg-type]
    ours = [np.frombuffer(tokens.ids, np.int32).tolist()[:SEQUENCE_LENGTH] for tokens in tokenizer.encode(rendered)]
    return sum(one == other["input_ids"] for one, other in zip(ours, theirs, strict=True)), len(rows)


def report_speed(file: Path, model: Path, given: argparse.Namespace) -> None:
    """In turn, so that all see the same noise; medians."""
    ours: list[dict[str, float]] = []
    theirs: dict[int | None, list[float]] = {None: [], 2: []}
    their_cpu: list[float] = []
    for _ in range(given.runs):
        ours.append(run_ours(file, model))
        for processes, speeds in theirs.items():
            _, seconds, used = prepare_theirs(file, model, given.peer_rows, packing=True, processes=processes)
            speeds.append(given.peer_rows / seconds)
            if processes is None:
                their_cpu.append(1e6 * used / given.peer_rows)
    speed = statistics.median(given.rows / run["seconds"] for run in ours)
    best = max(statistics.median(speeds) for speeds in theirs.values())
    rows = f"{given.rows:,} {'real' if given.data else 'Alpaca-shaped'} rows"
    report(f"prepare: {rows}, TRL's SFTTrainer preparation", speed, best, unit="rows/s", goal="ratio >= 10")
    our_cpu = statistics.median(1e6 * run["cpu_s"] / given.rows for run in ours)
    what = f"prepare: {rows}, CPU per row over all processes; TRL with one"
    report(what, our_cpu, statistics.median(their_cpu), unit="µs")
    fill = statistics.median(run["fill"] for run in ours)
    report(f"packing at {SEQUENCE_LENGTH}, {rows}: share of real tokens", fill, unit="share", goal="ours >= 0.99")


def report_growth(scratch: Path, model: Path, data: str) -> None:
    """Time per row, and peak memory, of ever more rows; `theirs` is the smaller number's."""
    found = {}
    for count in GROWTH:
        file = make_file(scratch / f"{count}.jsonl", count, model, data)
        found[count] = run_ours(file, model)
        file.unlink()
    for less, more in itertools.pairwise(GROWTH):
        times = [1e6 * found[count]["seconds"] / count for count in (more, less)]
        goal = "ratio <= 1.1" if less == GROWTH[1] else ""  # the first rows pay for starting processes
        report(f"prepare: time per row, {more:,} rows against {less:,}", *times, unit="µs", goal="ratio <= 1.1")
        peaks = [found[count]["peak_mib"] for count in (more, less)]
        report(f"prepare: peak memory, {more:,} rows against {less:,}", *peaks, unit="MiB", goal=goal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
