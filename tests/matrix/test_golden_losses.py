"""Losses of twenty steps, held against those that transformers 4.57, peft 0.17 and torch 2.13 gave: a new version of one of them
that computes something else fails here. Written anew, on purpose only, by  python -m tests.matrix.test_golden_losses
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.matrix.architectures import config_of
from tests.train.train_harness import VOCABULARY, Trainings

GOLDEN = Path(__file__).parent / "golden_losses.json"
TOLERANCE = 1e-6
"""Relative; fp32 on a CPU."""
SAMPLES = {"llama": 3, "qwen2": 1, "gemma2": 3, "gpt2": 1, "phi3": 3}
"""Architecture → samples in a row: packed where its attention keeps them apart."""


def write_base(name: str, folder: Path) -> None:
    """Weights that depend on their names alone: how a library draws a fresh model's changes from version to version."""
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(name)
    config.vocab_size = VOCABULARY
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                drawn = np.random.default_rng(zlib.crc32(key.encode())).normal(0.0, 0.1, parameter.shape)
                parameter.copy_(torch.from_numpy(drawn.astype(np.float32)))
    model.save_pretrained(folder)


class Losses:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def step_done(self, done: Any) -> bool:
        self.found.append(done.loss)
        return False


def losses_of(name: str, folder: Path) -> list[float]:
    from steps.protocol.prepared import PreparedRows
    from steps.train.loop.feed import Feed
    from steps.train.loop.ranks import Ranks
    from steps.train.pytorch.backend import TorchBackend

    write_base(name, folder / "base")
    spec = Trainings(folder).make("train", samples=SAMPLES[name], steps=20, learning_rate=5e-3).spec
    feed = Feed(PreparedRows.open(Path(spec.prepared_path)), spec, Ranks())
    backend = TorchBackend(spec, Ranks(), feed, stop_asked=lambda: False)
    backend.load(None)
    listener = Losses()
    backend.train(done=0, listener=listener)
    return [*listener.found, backend.validate(lambda *_: None)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "llama" else pytest.mark.whole) for name in SAMPLES]
)
def test_twenty_steps_have_the_losses_they_always_had(name: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[name]
    assert losses_of(name, tmp_path) == pytest.approx(expected, rel=TOLERANCE)
    assert expected[-2] < expected[0] - 0.05  # it learns, so the optimizer is part of what is compared


def main() -> int:
    found = {}
    for name in SAMPLES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = losses_of(name, Path(folder))
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
