"""What happens after each step, with a backend that only counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from steps.protocol.checkpoints import choose, register_writer
from steps.protocol.events import Event, EventTail, EventWriter
from steps.protocol.failure_class import EXIT_DIVERGED
from steps.protocol.failure_record import record_of
from steps.protocol.handover import HeldOutLoss
from steps.train.loop.backend import Listener, ModelSize, StepDone, Told
from steps.train.loop.callbacks import Callbacks, DivergedError
from steps.train.spec import TrainSpec
from tests.train.train_harness import Trainings


class Counting:
    """A backend whose validation losses are given."""

    layout: Mapping[str, Any] = {"backend": "counting"}  # a protocol's attribute

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses
        self.best: list[float] = []
        self._latest = float("nan")

    def fits(self, layout: Mapping[str, Any]) -> str | None:
        return None

    def load(self, checkpoint: Path | None) -> ModelSize:
        return ModelSize(1, 1)

    def train(self, *, done: int, listener: Listener) -> None:
        for step in range(done + 1, 1000):
            if listener.step_done(step_of(step)):
                return

    def validate(self, told: Told) -> float:
        for done in range(4):
            told(done, 4)
        self._latest = self.losses.pop(0)
        return self._latest

    def validation_head(self) -> HeldOutLoss | None:
        return HeldOutLoss(4, self._latest)

    def check_export(self, folder: Path, expected: HeldOutLoss) -> None:
        raise AssertionError("not exported here")

    def remember_best(self) -> None:
        self.best.append(self._latest)

    def save(self, folder: Path) -> None:
        (folder / "state").write_text("x")

    def export(self, folder: Path, *, best: bool) -> None:
        raise AssertionError("not exported here")


def step_of(step: int, *, loss: float = 1.0, norm: float = 0.5, stop_asked: bool = False) -> StepDone:
    return StepDone(step, loss, 1e-3, norm, 100, 50, stop_asked)


class Case:
    """Callbacks on a directory of their own."""

    def __init__(self, spec: TrainSpec, losses: list[float] | None = None) -> None:
        place = spec.place
        writer = register_writer(place.writers, 1)
        self.backend = Counting(losses if losses is not None else [1.0] * 100)
        events = EventWriter(place.events(1), attempt=1)
        self.callbacks = Callbacks(spec, self.backend, events=events, writer=writer)
        self.spec = spec

    def run(self) -> list[tuple[str, int]]:
        self.backend.train(done=0, listener=self.callbacks)
        return [(event.kind, event.step) for event in self.events]

    @property
    def events(self) -> list[Event]:
        return EventTail(self.spec.place.events(1)).read_new()


@pytest.fixture
def spec(trainings: Trainings, tmp_path: Path) -> TrainSpec:
    return trainings.make(str(tmp_path / "run"), checkpoint_every=4, validation_every=5, checkpoints_kept=2).spec


def test_saves_and_validations_come_at_their_intervals_and_at_the_end(spec: TrainSpec) -> None:
    told = Case(spec).run()
    assert [step for kind, step in told if kind == "step"] == list(range(1, 11))
    assert [step for kind, step in told if kind == "checkpoint"] == [4, 8, 10]
    assert [step for kind, step in told if kind == "validation"] == [5, 10]
    assert told[:2] == [("first_step", 1), ("step", 1)]


def test_a_validation_that_takes_long_tells_how_far_it_is(spec: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "validation_progress" not in [kind for kind, _ in Case(spec).run()]
    case = Case(spec)
    times = iter(range(0, 1000, 3))
    monkeypatch.setattr(case.callbacks, "_clock", lambda: float(next(times)))
    case.callbacks.step_done(step_of(5))
    told = [event for event in case.events if event.kind == "validation_progress"]
    assert [(event.step, event.data) for event in told] == [(5, {"done": 2, "of": 8}), (5, {"done": 6, "of": 8})]


def test_only_so_many_checkpoints_are_kept(spec: TrainSpec) -> None:
    Case(spec).run()
    assert sorted(path.name for path in spec.place.checkpoints.iterdir()) == [
        "step-000008.001-01",
        "step-000010.001-01",
    ]
    found = choose(spec.place.checkpoints, identity="abc").checkpoint
    assert found is not None
    assert found.layout == {"backend": "counting"}


def test_a_request_to_stop_saves_and_ends(spec: TrainSpec) -> None:
    case = Case(spec)
    assert not case.callbacks.step_done(step_of(1))
    assert case.callbacks.step_done(step_of(2, stop_asked=True))
    assert case.callbacks.stopped
    assert [event.kind for event in case.events][-3:] == ["checkpoint_begin", "checkpoint", "stopping"]


def test_a_request_to_stop_at_the_last_step_is_no_stop(spec: TrainSpec) -> None:
    case = Case(spec)
    assert case.callbacks.step_done(step_of(10, stop_asked=True))
    assert not case.callbacks.stopped


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["loss", "norm"])
def test_divergence_ends_at_once_with_step_and_rate(spec: TrainSpec, what: str, value: float) -> None:
    case = Case(spec)
    with pytest.raises(DivergedError, match=r"at step 4 of 10, learning rate 0.001.*now 0.01") as caught:
        case.callbacks.step_done(step_of(4, **{what: value}))
    record = record_of(caught.value, rank=0, node="n", step=3, time_s=0)
    assert (record.failure_class, record.exit_code) == ("user", EXIT_DIVERGED)
    assert not spec.place.checkpoints.exists()


def test_early_stopping_waits_for_its_patience_and_counts_as_the_end(spec: TrainSpec) -> None:
    spec = spec.model_copy(update={"patience": 2, "validation_every": 1, "keep": "best", "steps": 50})
    case = Case(spec, losses=[3.0, 2.0, 2.5, 2.1, 1.0])
    told = case.run()
    assert told[-1] == ("checkpoint", 4)
    assert case.callbacks.progress.ended
    assert not case.callbacks.stopped
    assert case.backend.best == [3.0, 2.0]
    assert (case.callbacks.progress.best_loss, case.callbacks.progress.best_step) == (2.0, 2)


def test_what_was_remembered_survives_a_restart(spec: TrainSpec) -> None:
    spec = spec.model_copy(update={"validation_every": 2})
    case = Case(spec, losses=[3.0, 3.5])
    for step in range(1, 5):
        case.callbacks.step_done(step_of(step))
    found = choose(spec.place.checkpoints, identity="abc").checkpoint
    assert found is not None
    again = Case(spec)
    again.callbacks.resume(found.path, found.step)
    assert again.callbacks.progress == case.callbacks.progress
    assert json.loads((found.path / "progress.json").read_text())["without_better"] == 1


def test_other_ranks_write_nothing(spec: TrainSpec, capsys: pytest.CaptureFixture[str]) -> None:
    backend = Counting([1.0] * 9)
    backend.save = lambda folder: None  # type: ignore[method-assign]  # as a backend does on other ranks
    callbacks = Callbacks(spec, backend, events=None, writer=register_writer(spec.place.writers, 1))
    backend.train(done=0, listener=callbacks)
    assert not spec.place.checkpoints.exists()
    assert capsys.readouterr().out == ""


def test_a_precompile_job_validates_but_saves_nothing_and_judges_no_number(
    trainings: Trainings, tmp_path: Path
) -> None:
    spec = trainings.make(str(tmp_path / "run"), checkpoint_every=2, validation_every=2, graphs_only=True).spec
    kinds = {kind for kind, _ in Case(spec, [float("nan")] * 100).run()}
    assert {"first_step", "step", "validation"} <= kinds
    assert not kinds & {"checkpoint_begin", "checkpoint"}
    assert not spec.place.checkpoints.exists()
