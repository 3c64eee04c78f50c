"""The real worker on device `neuron`: TorchNeuron's rules, kept by a stand-in on the CPU (`tests/neuron_device`)."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from steps.protocol.failure_record import read_records
from steps.train.torchneuron.cache import VARIABLE, graphs
from tests.train.train_harness import ROOT, Training, Trainings

pytestmark = pytest.mark.timeout(900)
STAND_IN = ROOT / "tests" / "neuron_device"


def on_neuron(training: Training) -> Training:
    """The training with the stand-in where torch finds it."""
    spec = training.spec.model_copy(update={"backend": "torchneuron"})
    return Training(spec, {"PYTHONPATH": os.pathsep.join([str(ROOT), str(STAND_IN)])})


@pytest.fixture(scope="module")
def alone(trainings: Trainings) -> Training:
    """Uninterrupted, one process, dropout on."""
    training = on_neuron(trainings.make("neuron-alone"))
    assert training.run() == 0, training.log()
    return training


def compiled_in_steps(training: Training, report: Path) -> list[str]:
    """Operators that were new in steps from the third on, but for those of validations and saves."""
    told = training.events()
    spans = [
        (before.time_s, event.time_s)
        for before, event in itertools.pairwise(told)
        if (before.kind, event.kind) == ("step", "step") and event.step > 2
    ]
    assert spans
    found = [json.loads(line) for line in report.read_text().splitlines()]
    assert any("addmm" in key or "mm" in key for _, key in found)
    return [key for time_s, key in found if any(begin < time_s <= end for begin, end in spans)]


@pytest.mark.parametrize("samples", [1, pytest.param(3, marks=pytest.mark.whole)])
def test_losses_are_the_cpus_and_nothing_is_compiled_after_the_second_step(
    trainings: Trainings, tmp_path: Path, samples: int
) -> None:
    # No dropout: a mask's numbers follow from the padded shape.
    lora = trainings.make("any").spec.training.lora.model_copy(update={"dropout": 0.0})
    there = trainings.make(f"cpu-shapes-{samples}", samples=samples, lora=lora)
    here = on_neuron(trainings.make(f"neuron-shapes-{samples}", samples=samples, lora=lora))
    here.environment |= {"STAND_IN_REPORT": str(tmp_path / "report"), VARIABLE: str(tmp_path / "node")}
    here.spec = here.spec.model_copy(update={"compile_cache": str(tmp_path / "shared")})
    for training in (here, there):
        assert training.run() == 0, training.log()
    assert compiled_in_steps(here, tmp_path / "report") == []
    for kind in ("step", "validation"):
        for ours, cpus in zip(here.events(kind=kind), there.events(kind=kind), strict=True):
            assert ours.data["loss"] == pytest.approx(cpus.data["loss"], abs=1e-5)
    assert (here.result / "adapter_config.json").is_file()
    assert here.events(kind="finished")[0].data["shapes"] == 1
    assert "shapes" not in there.events(kind="finished")[0].data
    assert graphs(tmp_path / "shared") == graphs(tmp_path / "node") != set()


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


@pytest.mark.whole
def test_broken_hardware_that_shows_in_a_collective_is_told_as_such(trainings: Trainings) -> None:
    training = on_neuron(trainings.make("neuron-broken"))
    words = 'error message="NRT EXECUTION FAILED: nrt_execute, NC encountered a parity error"'
    training.environment["STAND_IN_ERROR"] = f"1:{words}"
    assert training.run(processes=2) != 0
    told = {record.rank: record.failure_class for record in read_records(training.spec.place.attempt(1))}
    assert told[1] == "accelerator", training.log()
    assert told.get(0, "network") == "network", "the other one is a victim"


def test_without_the_device_a_training_that_was_planned_for_it_ends_at_once(trainings: Trainings) -> None:
    training = trainings.make("no-neuron", backend="torchneuron")
    assert training.run() == 65, training.log()
    (record,) = read_records(training.spec.place.attempt(1))
    assert "torch finds no device neuron here" in record.message
