"""A tiny random Llama, a few prepared rows and a spec, made in place; and the worker run on them as a subprocess.

Used by the tests of this folder. It is no conftest: two folders' conftests have one name, and an import finds the last one read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from steps.protocol.events import Event, EventTail
from steps.protocol.prepared import HELD_OUT, MANIFEST, ORDER, ROWS, VALIDATION
from steps.protocol.records import digest_file
from steps.settings.plan import LoraSettings
from steps.train.spec import TrainSpec
from steps.train.stage import PROCESS_ENVIRONMENT
from tests.shared.prepared_rows import write_manifest, write_rows

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 259


def write_prepared(folder: Path, *, steps: int, global_batch: int, samples: int = 1, train_rows: int = 40) -> str:
    """A prepared directory; returns its digest. `samples` > 1 packs so many into each row."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    write_rows(folder / ROWS, [rng.integers(12, 40, samples).tolist() for _ in range(train_rows)], rng, VOCABULARY)
    write_rows(folder / VALIDATION, [rng.integers(12, 40, 1).tolist() for _ in range(10)], rng, VOCABULARY)
    needed = steps * global_batch
    order = np.concatenate([rng.permutation(train_rows) for _ in range(needed // train_rows + 1)])[:needed]
    np.save(folder / ORDER, order.astype(np.int64))
    (folder / HELD_OUT).write_text("")
    facts = {"validation_samples": 10, "rows": train_rows, "sequence_length": 128, "packed": samples > 1}
    return write_manifest(folder, steps=steps, global_batch=global_batch, **facts)


def write_base(folder: Path, **changes: Any) -> None:
    """A Llama of two layers with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**shape | changes)).save_pretrained(folder)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and all its descendants, stopped first so that none reacts to another's death."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()
    for member in family:
        member.kill()


def finish(process: subprocess.Popen[bytes], *, timeout_s: float = 400.0) -> int:
    """Wait for the exit code; leave nothing alive when it does not come."""
    try:
        return process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise


@dataclass
class Training:
    """A spec on disk, and ways to run the worker on it."""

    spec: TrainSpec
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the worker's own."""

    @property
    def path(self) -> Path:
        return self.spec.place.path

    def start(self, attempt: int, *, processes: int = 1) -> subprocess.Popen[bytes]:
        """The worker, alone or under torchrun, its output in the training's directory."""
        self.spec.place.path.mkdir(parents=True, exist_ok=True)
        self.spec.place.spec.write_text(json.dumps(self.spec.to_dict()))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*(launcher if processes > 1 else []), "-m", "steps.train.worker", str(self.spec.place.spec)]
        environment = {**os.environ, **PROCESS_ENVIRONMENT, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= self.environment
        with (self.path / f"log-{attempt}.txt").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *command, "--attempt", str(attempt)],
                cwd=self.path, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def run(self, attempt: int = 1, *, processes: int = 1) -> int:
        """Run to the end; the exit code (torchrun's own is 1 for any failure)."""
        return finish(self.start(attempt, processes=processes))

    def run_until(
        self,
        step: int,
        *,
        attempt: int = 1,
        processes: int = 1,
        send: Callable[[subprocess.Popen[bytes]], None] | None = None,
    ) -> int:
        """Run, and once `step` is done kill every process (or do what `send` does); the exit code."""
        process = self.start(attempt, processes=processes)
        tail = EventTail(self.spec.place.events(attempt))
        while process.poll() is None:
            if any(event.kind == "step" and event.step >= step for event in tail.read_new()):
                (send or kill_all)(process)
                break
            time.sleep(0.002)
        return finish(process)

    def events(self, attempt: int = 1, kind: str = "") -> list[Event]:
        found = EventTail(self.spec.place.events(attempt)).read_new()
        return [event for event in found if not kind or event.kind == kind]

    def log(self, attempt: int = 1) -> str:
        return (self.path / f"log-{attempt}.txt").read_text(errors="replace")

    @property
    def result(self) -> Path:
        """The folder that the newest `finished` event names."""
        return sorted(self.spec.place.writers.glob("*/result"))[-1]

    @property
    def bits(self) -> str:
        """Digest of the final adapter's weights."""
        return digest_file(self.result / "adapter_model.safetensors")


class Trainings:
    """Makes trainings that share a base model and prepared data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, name: str, *, samples: int = 1, base: str = "base", **changes: Any) -> Training:
        """A training in a directory of its own; `changes` are fields of TrainSpec."""
        values: dict[str, Any] = {
            "steps": 10, "global_batch": 8, "micro_batch": 2, "learning_rate": 1e-2, "scheduler": "cosine",
            "warmup_ratio": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0, "sequence_length": 128,
            "precision": "fp32", "quantization": "none",
            "lora": LoraSettings(method="lora", rank=4, alpha=8.0, dropout=0.1, targets=("all-linear",)),
            "seed": 42, "checkpoint_every": 4, "checkpoints_kept": 3, "validation_every": 5, "validation_rows": 8,
            "threads_per_process": 1,
        } | changes  # fmt: skip
        prepared = self.folder / f"prepared-{samples}-{values['steps']}-{values['global_batch']}"
        if not prepared.exists():
            write_prepared(prepared, steps=values["steps"], global_batch=values["global_batch"], samples=samples)
        manifest = json.loads((prepared / MANIFEST).read_text())
        return Training(
            TrainSpec(
                directory=str(self.folder / name),
                identity="abc",
                base_path=str(self.folder / base),
                base_digest="b",
                base_name="tiny",
                prepared_path=str(prepared),
                prepared_digest=manifest["record"]["digest"],
                packed=samples > 1,
                **values,
            )
        )
