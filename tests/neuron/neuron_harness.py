"""A tiny Llama whose sizes divide by 2 and 4, a few prepared rows, a spec, and the worker run on them under torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steps.protocol.checkpoints import directories
from steps.protocol.events import Event, EventTail
from steps.protocol.failure_record import FailureRecord, read_records
from steps.protocol.prepared import HELD_OUT, ORDER, ROWS, VALIDATION
from steps.train.spec import TrainSpec
from tests.shared.prepared_rows import write_manifest, write_rows

ROOT = Path(__file__).resolve().parents[2]
ENTRY = Path(__file__).with_name("neuron_entry.py")
VOCABULARY = 260
LENGTH = 48
PATIENCE_S = 1500
"""For one training: compilation on the device, or a busy machine without one."""
Rows = Sequence[Sequence[int]]
EXACT: dict[str, Any] = {"precision": "fp32", "checkpoint_every": 1, "checkpoints_kept": 8}
LIKE_REAL: dict[str, Any] = {"precision": "bf16", "lora": {"dropout": 0.1}}
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "fp32": (1, EXACT),
    "fp32, TP=2": (2, EXACT | {"tensor_parallel": 2}),
    "fp32, PP=2": (2, EXACT | {"pipeline_parallel": 2}),
    "bf16, one core": (1, LIKE_REAL),
    "bf16, TP=2": (2, LIKE_REAL | {"tensor_parallel": 2}),
    "bf16, PP=2": (2, LIKE_REAL | {"pipeline_parallel": 2}),
    "bf16, DP=2": (2, LIKE_REAL | {"micro_batch": 1}),
}
"""Processes and changes of the spec. Those in bf16 use dropout; DP=2 is ZeRO-1, and can be taken over by one and by four."""


def write_prepared(folder: Path, *, rows: Rows, held_out: Rows, order: Sequence[int], global_batch: int) -> str:
    """A prepared directory; returns its digest."""
    folder.mkdir(parents=True)
    write_rows(folder / ROWS, rows, np.random.default_rng(1), VOCABULARY)
    write_rows(folder / VALIDATION, held_out, np.random.default_rng(2), VOCABULARY)
    np.save(folder / ORDER, np.array(order, dtype=np.int64))
    (folder / HELD_OUT).write_text("")
    facts = {"validation_samples": len(held_out), "rows": len(rows), "sequence_length": LENGTH}
    steps, packed = len(order) // global_batch, max(map(len, rows)) > 1
    return write_manifest(folder, steps=steps, global_batch=global_batch, packed=packed, **facts)


def write_base(folder: Path, model_type: str = "llama", **changes: Any) -> None:
    """A model of two layers with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
    }  # fmt: skip
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape | changes)).save_pretrained(folder)


@dataclass
class Training:
    """A spec on disk, and ways to run the worker on it."""

    spec: TrainSpec

    def start(self, attempt: int, *, processes: int) -> subprocess.Popen[bytes]:
        """The worker under torchrun, its output in the training's directory."""
        place = self.spec.place
        place.path.mkdir(parents=True, exist_ok=True)
        place.spec.write_text(json.dumps(self.spec.to_dict()))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        scratch = place.path / f"scratch-{attempt}"
        scratch.mkdir(exist_ok=True)
        path = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
        if environment.get("PJRT_DEVICE") == "CPU":
            environment["XLA_FLAGS"] = "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
        entry = os.environ.get("NEURON_TEST_ENTRY", str(ENTRY))
        program = ["-m", "steps.train.worker"] if self.spec.backend == "torch" else [entry]
        with (place.path / f"log-{attempt}.txt").open("wb") as log:
            return subprocess.Popen(
                [*launcher, *program, str(place.spec), "--attempt", str(attempt)],
                cwd=place.path, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def run(self, attempt: int = 1, *, processes: int = 1) -> None:
        """Run to the end, which must be a good one."""
        code = self.start(attempt, processes=processes).wait(timeout=PATIENCE_S)
        assert code == 0, self.log(attempt)

    def kill_after(self, step: int, *, attempt: int = 1, processes: int = 1) -> None:
        """Run, and kill every process once `step` is done."""
        import psutil

        process = self.start(attempt, processes=processes)
        tail = EventTail(self.spec.place.events(attempt))
        while process.poll() is None:
            if any(event.kind == "step" and event.step >= step for event in tail.read_new()):
                launcher = psutil.Process(process.pid)
                for item in [launcher, *launcher.children(recursive=True)]:  # ranks have their own sessions
                    with contextlib.suppress(psutil.NoSuchProcess):
                        item.kill()
            time.sleep(0.02)
        assert process.wait() == -signal.SIGKILL, self.log(attempt)

    def log(self, attempt: int = 1) -> str:
        """The end of an attempt's log, and its failure records."""
        text = (self.spec.place.path / f"log-{attempt}.txt").read_text(errors="replace")
        return "\n".join([*(record.traceback for record in self.failures(attempt)), text[-3000:]])

    def fork(self, directory: Path, step: int) -> Training:
        """The same training elsewhere, with the checkpoint of one step."""
        forked = Training(self.spec.model_copy(update={"directory": str(directory)}))
        source = self.checkpoint(step)
        shutil.copytree(source, forked.spec.place.checkpoints / source.name)
        return forked

    def failures(self, attempt: int = 1) -> list[FailureRecord]:
        """Failure records of an attempt."""
        return read_records(self.spec.place.attempt(attempt))

    def events(self, attempt: int = 1) -> list[Event]:
        """All events of an attempt."""
        return EventTail(self.spec.place.events(attempt)).read_new()

    def values(self, key: str, attempt: int = 1) -> dict[int, float]:
        """A number of each step's event."""
        return {event.step: event.data[key] for event in self.events(attempt) if event.kind == "step"}

    def checkpoint(self, step: int) -> Path:
        """The newest checkpoint of a step."""
        return next(
            path for path in directories(self.spec.place.checkpoints) if path.name.startswith(f"step-{step:06d}")
        )

    def adapter(self, attempt: int = 1) -> Path:
        """The exported adapter."""
        finished = next(event for event in self.events(attempt) if event.kind == "finished")
        return self.spec.place.path / finished.data["result"]


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same files with the same bytes (their records and progress aside)."""
    names = {path.name for path in first.glob("*.safetensors")}
    return names == {path.name for path in second.glob("*.safetensors")} and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )
