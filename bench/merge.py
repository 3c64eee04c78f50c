"""Merge against `cp` and against PEFT: wall time and peak memory of whole processes, in turn, on disk and on a RAM disk.

    python -m bench merge                   (Llama-3.2-1B-shaped, 2.5 GB; needs about 5 GB in each place)
    python -m bench merge --growth          (1 to 16 GB on disk: do time per GB and memory stay? needs 33 GB)
    python -m bench merge --shape 8b --no-peft --places /tmp

Processor time is told as well: unlike wall time it stays about the same on a busy machine. Weights are random.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench._report import report

ROOT = Path(__file__).resolve().parents[1]
RANK = 16
SHARDS = 5
PEFT_REPEATS, GROWTH_REPEATS = 3, 3
LOOK_S = 0.1
"""Between two looks at the memory of a process and its children."""
OURS = """
import sys
from pathlib import Path
from steps.merge.folder import merge_folders
merge_folders(*map(Path, sys.argv[1:]))
"""
PEFT = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(out, in) of one layer's linear modules."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "tiny": Shape(256, 512, 4, 8, 4, 4096, True),
    "0.5b": Shape(1536, 4096, 12, 12, 4, 128256, True),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256, True),
    "3b": Shape(3072, 8192, 28, 24, 8, 128256, True),
    "8b": Shape(4096, 14336, 32, 32, 8, 128256, False),
}
GROWTH = ("0.5b", "1b", "3b", "8b")
"""1, 2.5, 6.4 and 16 GB."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One process's cost."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def make_model(folder: Path, shape: Shape) -> None:
    """`base` and `adapter` in `folder`, made by another process: a child's peak memory begins at its parent's."""
    context = multiprocessing.get_context("spawn")
    for make, name in ((make_base, "base"), (make_adapter, "adapter")):
        maker = context.Process(target=make, args=(folder / name, shape))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError(f"making {folder / name} failed")


def make_base(folder: Path, shape: Shape) -> None:
    """Random bf16 weights in shards of about equal size, with an index."""
    folder.mkdir(parents=True)
    sizes = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        sizes |= {f"{prefix}{name}.weight": size for name, size in shape.linear.items()}
        sizes |= {f"{prefix}{name}.weight": (shape.hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    sizes["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    total = sum(math.prod(size) * 2 for size in sizes.values())
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(SHARDS)]
    at = 0
    for name, size in sizes.items():
        shards[min(at * SHARDS // total, SHARDS - 1)][name] = size
        at += math.prod(size) * 2
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        write_random(folder / file, tensors, "BF16")
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config))


def make_adapter(folder: Path, shape: Shape) -> None:
    """A random fp32 LoRA of rank 16 on all linear layers."""
    folder.mkdir(parents=True)
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(shape.layers):
        for name, (rows, columns) in shape.linear.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors |= {f"{prefix}.lora_A.weight": (RANK, columns), f"{prefix}.lora_B.weight": (rows, RANK)}
    write_random(folder / "adapter_model.safetensors", tensors, "F32")
    targets = sorted(name.split(".")[1] for name in shape.linear)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": targets,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_random(file: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Values around ±0.02, as an initialised model's; the same block again and again, which no measurement here notices."""
    import numpy as np

    from steps.merge.safetensors_file import lay_out

    values = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * np.float32(0.02)
    block = values.tobytes() if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header, places = lay_out(file, [(name, dtype, size) for name, size in tensors.items()], {"format": "pt"})
    with file.open("wb") as stream:
        stream.write(header)
        for place in places:
            for left in range(place.bytes, 0, -len(block)):
                stream.write(block[:left])


def measure(command: list[str], out: Path) -> Measured:
    """Run a process to its end; `out` is removed before and after.

    Raises:
        RuntimeError: it failed.
    """
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        tree_mib = pool.submit(watch_tree, psutil.Process(process.pid), ended)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        ended.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    shutil.rmtree(out, ignore_errors=True)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {' '.join(command)}")
    return Measured(wall_s, usage.ru_utime + usage.ru_stime, max(usage.ru_maxrss / 1024, tree_mib.result()))


def watch_tree(root: psutil.Process, ended: threading.Event) -> float:
    """The most memory, in MiB, that a process and its children held together; what they share counts for each."""
    peak = 0
    while not ended.wait(LOOK_S):
        with contextlib.suppress(psutil.Error):
            peak = max(peak, sum(one.memory_info().rss for one in (root, *root.children(recursive=True))))
    return peak / 2**20


def compare(folder: Path, *, repeats: int, with_peft: bool) -> dict[str, list[Measured]]:
    """Run each contender in turn on the model in `folder`."""
    base, adapter, out = folder / "base", folder / "adapter", folder / "out"
    paths = [str(base), str(adapter), str(out)]
    contenders = {
        "cp": ["cp", "-r", "--reflink=never", str(base), str(out)],
        "ours": [sys.executable, "-c", OURS, *paths],
        "peft": [sys.executable, "-c", PEFT, *paths],
    }
    if not with_peft:
        del contenders["peft"]
    results: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, command in contenders.items():
            if name != "peft" or len(results[name]) < PEFT_REPEATS:
                results[name].append(measure(command, out))
    return results


def report_against(place: str, shape: str, results: dict[str, list[Measured]]) -> None:
    """Medians against each of the others."""
    goals = {("cp", "wall_s"): "ratio <= 1.6", ("peft", "peak_mib"): "ratio <= 0.0625"}
    for other in [name for name in results if name != "ours"]:
        for field, unit in (("wall_s", "s"), ("cpu_s", "s"), ("peak_mib", "MiB")):
            if (other, field) != ("cp", "peak_mib"):
                medians = [statistics.median(getattr(run, field) for run in results[name]) for name in ("ours", other)]
                what = f"merge {shape} on {place}, {field.split('_')[0]} against {other}"
                report(what, *medians, unit=unit, goal=goals.get((other, field), ""))


def report_growth(place: str, repeats: int) -> None:
    """Time per GB and peak memory of ever larger models; `theirs` is the next smaller one's."""
    before: tuple[str, float, float] | None = None
    for shape in GROWTH:
        with tempfile.TemporaryDirectory(dir=place, prefix="bench-merge-") as scratch:
            folder = Path(scratch)
            make_model(folder, SHAPES[shape])
            os.sync()
            gb = sum(file.stat().st_size for file in (folder / "base").iterdir()) / 1e9
            runs = compare(folder, repeats=repeats, with_peft=False)
        cpu, peak = (statistics.median(getattr(run, field) for run in runs["ours"]) for field in ("cpu_s", "peak_mib"))
        report(f"merge {shape} ({gb:.1f} GB), wall against cp", *_walls(runs), unit="s")
        if before:
            name, cpu_per_gb, their_peak = before
            report(f"merge: CPU per GB, {shape} against {name}", cpu / gb, cpu_per_gb, unit="s", goal="ratio <= 1.2")
            report(f"merge: peak memory, {shape} against {name}", peak, their_peak, unit="MiB", goal="ratio <= 1.1")
        before = shape, cpu / gb, peak


def _walls(runs: dict[str, list[Measured]]) -> tuple[float, float]:
    ours, theirs = (statistics.median(run.wall_s for run in runs[name]) for name in ("ours", "cp"))
    return ours, theirs


def main(argv: list[str]) -> int:
    """Entry point; exit status 0 when everything ran."""
    parser = argparse.ArgumentParser(prog="python -m bench merge")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--places", nargs="+", default=["/dev/shm", tempfile.gettempdir()], help="scratch folders")
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT out (it needs the whole model in memory)")
    parser.add_argument("--growth", action="store_true", help="1 to 16 GB in the last of the places")
    given = parser.parse_args(argv)
    if given.growth:
        report_growth(given.places[-1], min(given.repeats, GROWTH_REPEATS))
        return 0
    for place in given.places:
        with tempfile.TemporaryDirectory(dir=place, prefix="bench-merge-") as scratch:
            make_model(Path(scratch), SHAPES[given.shape])
            os.sync()
            results = compare(Path(scratch), repeats=given.repeats, with_peft=not given.no_peft)
        report_against(place, given.shape, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
