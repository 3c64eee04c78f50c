"""The real worker on device `neuron`: TorchNeuron's rules, kept by a stand-in on the CPU (`tests/neuron_device`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.train.train_harness import ROOT, Training, Trainings

pytestmark = pytest.mark.timeout(900)
STAND_IN = ROOT / "tests" / "neuron_device"


def on_neuron(training: Training) -> Training:
    """The training with the stand-in where torch finds it."""
    return Training(training.spec, {"PYTHONPATH": os.pathsep.join([str(ROOT), str(STAND_IN)])})


@pytest.fixture(scope="module")
def alone(trainings: Trainings) -> Training:
    """Uninterrupted, one process, dropout on."""
    training = on_neuron(trainings.make("neuron-alone"))
    assert training.run() == 0, training.log()
    return training


def test_losses_are_the_cpus(whole: Training, alone: Training) -> None:
    for kind in ("step", "validation"):
        for here, there in zip(alone.events(kind=kind), whole.events(kind=kind), strict=True):
            assert here.data["loss"] == pytest.approx(there.data["loss"], abs=1e-5)
    assert Path(alone.result, "adapter_config.json").is_file()


@pytest.mark.whole
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_more_processes_give_the_same_bits_without_send_and_receive(
    alone: Training, trainings: Trainings, processes: int
) -> None:
    training = on_neuron(trainings.make(f"neuron-{processes}"))
    assert training.run(processes=processes) == 0, training.log()
    assert training.bits == alone.bits


@pytest.mark.whole
def test_killed_and_resumed_is_bit_identical(alone: Training, trainings: Trainings) -> None:
    training = on_neuron(trainings.make("neuron-killed"))
    assert training.run_until(6, processes=2) != 0
    assert training.run(2) == 0, training.log(2)
    assert training.events(2, "started")[0].data["layout_changed"]
    assert training.bits == alone.bits
