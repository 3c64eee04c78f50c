"""Trainings with the Neuron libraries: on a Trainium machine, or anywhere with a stand-in for its cores on the path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from steps.train.spec import TrainSpec
from tests.neuron.needed import LIBRARIES, missing
from tests.neuron.neuron_harness import LENGTH, PATIENCE_S, RUNS, Training, write_base, write_prepared

MakeTraining = Callable[..., Training]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs them, saying what is missing; all of it takes longer than a few seconds."""
    here = [item for item in items if Path(__file__).parent in Path(item.path).parents]
    absent = missing(LIBRARIES)
    for item in here:
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.timeout(4 * PATIENCE_S))
        if absent:
            reason = f"the Neuron training libraries are not installed here: {', '.join(absent)}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model."""
    folder = tmp_path_factory.mktemp("base") / "model"
    write_base(folder)
    return folder


@pytest.fixture(scope="session")
def make_training(base: Path) -> MakeTraining:
    """Make a training in a folder; keyword arguments change its spec, `data` the arguments of `write_prepared`."""

    def make(into: Path, name: str = "run", *, data: dict[str, Any] | None = None, **changes: Any) -> Training:
        lora = {"method": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["all-linear"]}
        steps, batch = changes.get("steps", 8), changes.get("global_batch", 4)
        rows = [[20 + 4 * (number % 7)] for number in range(24)]
        order = [number % len(rows) for number in range(steps * batch)]
        prepared = {"rows": rows, "held_out": [[21], [33], [40], [27], [48]], "order": order, "global_batch": batch}
        folder = into / f"{name}-prepared"
        digest = write_prepared(folder, **prepared | (data or {}))
        raw = {
            "schema": "hyperpod-lora/train-spec/1", "directory": str(into / name), "identity": "identity",
            "base_path": str(base), "base_digest": "base", "base_name": "tiny", "prepared_path": str(folder),
            "prepared_digest": digest, "steps": steps, "global_batch": batch, "micro_batch": 2, "learning_rate": 1e-2,
            "scheduler": "linear", "warmup_ratio": 0.25, "weight_decay": 0.01, "max_grad_norm": 1.0,
            "sequence_length": LENGTH, "packed": False, "precision": "bf16", "quantization": "none", "seed": 7,
            "checkpoint_every": 4, "checkpoints_kept": 3, "validation_every": 4, "validation_rows": 5, "backend": "neuron",
            **changes, "lora": lora | changes.get("lora", {}),
        }  # fmt: skip
        return Training(TrainSpec.from_dict(raw))

    return make


@pytest.fixture
def new_training(tmp_path: Path, make_training: MakeTraining) -> MakeTraining:
    """A training of one test."""
    return partial(make_training, tmp_path)


@pytest.fixture(scope="session")
def uninterrupted(make_training: MakeTraining, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Training]:
    """A training of `RUNS` that was run to its end, once for all tests that hold something against it."""
    finished: dict[str, Training] = {}

    def run(name: str) -> Training:
        if name not in finished:
            processes, changes = RUNS[name]
            training = make_training(tmp_path_factory.mktemp("whole"), **changes)
            training.run(processes=processes)
            finished[name] = training
        return finished[name]

    return run
