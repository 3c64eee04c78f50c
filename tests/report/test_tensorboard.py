"""TensorBoard's files, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steps.report.tensorboard import FOLDER, TensorBoard
from tests.report.standin import change, facts_of, write_events
from tests.report.test_metrics import events_of


def losses(folder: Path) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder / FOLDER))
    reader.Reload()
    return [(item.step, round(item.value, 4)) for item in reader.Scalars("train/loss")]


def write(folder: Path) -> None:
    sink = TensorBoard(facts_of(folder))
    sink.send([change("attempt_began")], events_of(folder))
    sink.close()


def test_steps_that_were_done_again_stand_once_and_a_second_launcher_doubles_nothing(tmp_path: Path) -> None:
    write_events(tmp_path, 1, range(1, 5))
    write_events(tmp_path, 2, range(3, 6), time_s=2000.0)
    write(tmp_path)
    expected = [(1, 1.0), (2, 0.5), (3, 0.3333), (4, 0.25), (5, 0.2)]
    assert losses(tmp_path) == expected
    write(tmp_path)
    assert losses(tmp_path) == expected
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
