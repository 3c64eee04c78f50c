"""How looking at checkpoints grows: `choose` over 10 to 10,000 of them, `damage` over 1 to 4,096 files.

    python -m bench checkpoints [--most-checkpoints 10000] [--most-files 4096] [--repeats 5]

CPU time (median), in memory, so that a busy machine changes little. Beside ours stands transformers'
`get_last_checkpoint`, which takes the highest step for good and opens no file. Ends with the growth: time per item at the
largest number against a tenth of it, or a quarter for files (1: linear).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench._report import report
from steps.protocol.checkpoints import Checkpoint, checkpoint_path, choose, commit, damage
from steps.protocol.writer import Writer

WRITER = Writer(1, 1)
IDENTITY = "abc123"
FILE_BYTES = 4096


def main(argv: Sequence[str]) -> int:
    """Measure both."""
    parser = argparse.ArgumentParser(prog="python -m bench checkpoints", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--most-checkpoints", type=int, default=10_000)
    parser.add_argument("--most-files", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args(argv)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="bench-checkpoints-", dir=memory if memory.is_dir() else None) as place:
        measure_choose(Path(place), asked.most_checkpoints, asked.repeats)
        measure_damage(Path(place), asked.most_files, asked.repeats)
    return 0


def measure_choose(place: Path, most: int, repeats: int) -> None:
    """The usual case (the newest is whole) and the worst (none is of this training, so every record is read)."""
    from transformers.trainer_utils import get_last_checkpoint

    usual, worst = {}, {}
    for count in series(10, most, 10):
        folder = make_checkpoints(place / f"ours-{count}", count)
        for step in range(1, count + 1):
            (place / f"theirs-{count}" / f"checkpoint-{step}").mkdir(parents=True)
        peer = place / f"theirs-{count}"
        usual[count] = cpu_s(lambda folder=folder: choose(folder, identity=IDENTITY), repeats)
        worst[count] = cpu_s(lambda folder=folder: choose(folder, identity="other"), repeats)
        theirs = cpu_s(lambda peer=peer: get_last_checkpoint(str(peer)), repeats)
        report(f"choose among {count:,} checkpoints, the newest is whole", usual[count] * 1e3, theirs * 1e3, unit="ms")
        report(f"choose among {count:,} checkpoints, none is usable", worst[count] * 1e3, unit="ms")
    report(
        "choose, the newest is whole: growth of the time per checkpoint", growth(usual), unit="×", goal="ours <= 1.2"
    )
    report("choose, none is usable: growth of the time per checkpoint", growth(worst), unit="×", goal="ours <= 1.2")


def measure_damage(place: Path, most: int, repeats: int) -> None:
    """A whole checkpoint, every file of it read and hashed."""
    taken = {}
    for count in series(1, most, 4):
        saved = make_files(place / f"files-{count}", count)
        taken[count] = cpu_s(lambda saved=saved: damage(saved), repeats)
        report(f"damage over {count:,} files of {FILE_BYTES // 1024} KiB", taken[count] * 1e3, unit="ms")
    report("damage: growth of the time per file", growth(taken), unit="×", goal="ours <= 1.2")


def series(first: int, last: int, factor: int) -> list[int]:
    """first, first × factor, … up to last."""
    numbers = [first]
    while numbers[-1] * factor <= last:
        numbers.append(numbers[-1] * factor)
    return numbers


def make_checkpoints(folder: Path, count: int) -> Path:
    """`count` committed checkpoints of one small file; all but the first are copies of its record, which saves the fsyncs."""
    first = make_files(folder, 1)
    record = json.loads((first.path / "COMPLETE.json").read_text())
    content = (first.path / "0.bin").read_bytes()
    for step in range(2, count + 1):
        path = checkpoint_path(folder, step, WRITER)
        path.mkdir()
        (path / "0.bin").write_bytes(content)
        (path / "COMPLETE.json").write_text(json.dumps({**record, "step": step}))
    return folder


def make_files(folder: Path, count: int) -> Checkpoint:
    """A committed checkpoint of step 1 with `count` files."""
    path = checkpoint_path(folder, 1, WRITER)
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"{number}.bin").write_bytes(number.to_bytes(4, "little") * (FILE_BYTES // 4))
    return commit(path, step=1, writer=WRITER, identity=IDENTITY, layout={"world": 1})


def cpu_s(action: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of a call; short calls are made often enough to be measured (for about 20 ms)."""
    begun = time.process_time()
    action()
    calls = max(1, round(0.02 / max(time.process_time() - begun, 1e-5)))
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        for _ in range(calls):
            action()
        found.append((time.process_time() - begun) / calls)
    return statistics.median(found)


def growth(taken: dict[int, float]) -> float:
    """Time per item at the largest number, as a multiple of that at the number before it."""
    before, largest = sorted(taken)[-2:]
    return (taken[largest] / largest) / (taken[before] / before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
