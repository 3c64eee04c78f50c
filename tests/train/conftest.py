"""Trainings that share a base model and prepared data."""

from __future__ import annotations

import pytest

from tests.train.train_harness import Training, Trainings, write_base


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    folder = tmp_path_factory.mktemp("trainings")
    write_base(folder / "base")
    return Trainings(folder)


@pytest.fixture(scope="session")
def whole(trainings: Trainings) -> Training:
    """An uninterrupted run of one process: fp32, dropout on."""
    training = trainings.make("whole")
    assert training.run() == 0, training.log()
    return training
