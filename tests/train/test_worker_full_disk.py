"""A real training on a disk that fills in each phase of a save: its class is storage, and the checkpoint before is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.protocol import checkpoints
from steps.protocol.events import EventTail
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import read_records
from tests.shared.small_disk import PAGE, disk_of, fill
from tests.train.train_harness import Training, Trainings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOM: dict[str, int] = {
    "not even an event": 0,
    "no weights": 2 * PAGE,
    "the weights, not the optimizer": 14 * PAGE,
    "all but the record": 31 * PAGE,
    "one save, no result": 48 * PAGE,
}
"""Bytes left behind the checkpoint of step 4; one takes about 115 KiB."""


@pytest.mark.parametrize("room", ROOM.values(), ids=ROOM)
def test_a_disk_that_fills_ends_the_attempt_as_storage_and_harms_no_older_checkpoint(
    whole: Training, trainings: Trainings, tmp_path: Path, room: int
) -> None:
    with disk_of(tmp_path / "disk", 4 << 20) as disk:
        spec = trainings.make("full-disk").spec.model_copy(update={"directory": str(disk / "train")})
        training = Training(spec)
        process, tail = training.start(1), EventTail(spec.place.events(1))
        while not any(event.kind == "checkpoint" for event in tail.read_new()):
            assert process.poll() is None, training.log()
        fill(disk, leave_bytes=room)
        assert process.wait(timeout=300) == FailureClass.STORAGE.exit_code, training.log()
        chosen = checkpoints.choose(spec.place.checkpoints, identity="abc")
        assert chosen.checkpoint is not None
        assert chosen.checkpoint.step in (4, 8)
        records = read_records(spec.place.attempt(1))
        assert all(record.failure_class == "storage" and "full" in record.message for record in records)
        (disk / "filler").unlink()
        assert training.run(2) == 0, training.log(2)
        assert training.events(2, "started")[0].step == chosen.checkpoint.step
        assert training.bits == whole.bits
