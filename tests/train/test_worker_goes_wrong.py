"""Real trainings that hang, wake up too late, or find their data changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from steps.job.job import Job
from steps.job.local_launcher import LocalLauncher
from steps.job.supervise import Outside, supervise
from steps.protocol import checkpoints
from steps.protocol.events import Event, EventTail
from steps.protocol.failure_record import read_records
from steps.protocol.prepared import ORDER, ROWS
from steps.protocol.records import digest_file
from steps.settings.config import Settings
from tests.train.train_harness import Training, Trainings, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HERE = Path(__file__).parent


@pytest.mark.parametrize("sleeper", [0, 1])
def test_a_rank_that_hangs_in_a_step_is_found_by_the_gap_and_named_by_its_stack(
    whole: Training, trainings: Trainings, sleeper: int
) -> None:
    spec = trainings.make(f"rank-{sleeper}-sleeps").spec
    job = Job(
        "sleepy_worker", spec.to_dict(), spec.place, spec.identity, spec.steps, processes=2,
        environment={"PYTHONPATH": str(HERE), "SLEEPY_RANK": str(sleeper)},
    )  # fmt: skip
    limits = {"deadlines": {"step_gap_s": 10.0, "grace_s": 5.0}, "retry": {"delay_s": 0.0}}
    notices: list[str] = []
    result = supervise(job, LocalLauncher(grace_s=5), Settings.model_validate(limits), Outside(notice=notices.append))
    assert result.attempts == 2
    assert "attempt 1 failed (hang after step" in notices[0]
    evidence = spec.place.attempt(1) / "evidence"
    asleep = [path for path in evidence.glob("stack-*.txt") if "fall_asleep" in path.read_text()]
    assert [int(path.stem.removeprefix("stack-")) for path in asleep] == [sleeper]
    assert digest_file(result.result_dir / "adapter_model.safetensors") == whole.bits


def stop_at(training: Training, wanted: Callable[[Event], bool]) -> subprocess.Popen[bytes]:
    """The first attempt, stopped (SIGSTOP) with all that it started as soon as an event is the wanted one."""
    process, tail = training.start(1), EventTail(training.spec.place.events(1))
    while not any(wanted(event) for event in tail.read_new()):
        assert process.poll() is None, training.log()
    for member in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        member.suspend()
    return process


def digests_below(folder: Path) -> dict[str, str]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): digest_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


MOMENTS: dict[str, Callable[[Event], bool]] = {
    "between two saves": lambda event: event.kind == "step" and event.step == 6,
    "inside a save": lambda event: event.kind == "checkpoint_begin" and event.step == 8,
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("kept", [1, 3])
def test_an_attempt_that_wakes_up_after_a_newer_one_adds_its_own_and_harms_nothing(
    whole: Training, trainings: Trainings, request: pytest.FixtureRequest, moment: Callable[[Event], bool], kept: int
) -> None:
    training = trainings.make(request.node.name, checkpoints_kept=kept)
    place = training.spec.place
    asleep = stop_at(training, moment)
    assert training.run(2) == 0, training.log(2)
    newer, chosen = digests_below(training.path), checkpoints.choose(place.checkpoints, identity="abc").checkpoint
    assert chosen is not None
    assert (chosen.step, str(chosen.writer)) == (10, "002-01")
    os.killpg(asleep.pid, signal.SIGCONT)
    finish(asleep)  # it ends well, or as storage's failure: the newer one has set its half-written save aside
    after = digests_below(training.path)
    changed = {name for name in {*newer, *after} if newer.get(name) != after.get(name)}
    assert changed, "it did go on"
    assert [name for name in changed if "001-01" not in name and not name.startswith(("attempts/001/", "log-1"))] == []
    assert {record.failure_class for record in read_records(place.attempt(1))} <= {"storage"}
    assert checkpoints.choose(place.checkpoints, identity="abc").checkpoint == chosen
    assert digest_file(place.writers / "002-01" / "result" / "adapter_model.safetensors") == whole.bits


@pytest.mark.parametrize("name", [ORDER, ROWS])
def test_data_that_changes_between_two_attempts_is_refused_before_a_step(trainings: Trainings, name: str) -> None:
    training = trainings.make(f"data-changed-{name}")
    assert training.run_until(5) != 0
    prepared = trainings.folder / f"changed-{name}"
    shutil.copytree(training.spec.prepared_path, prepared)
    content = bytearray((prepared / name).read_bytes())
    content[len(content) // 2] ^= 1  # among the values: the file can still be opened
    (prepared / name).write_bytes(content)
    moved = Training(training.spec.model_copy(update={"prepared_path": str(prepared)}))
    before = digests_below(training.spec.place.checkpoints)
    assert moved.run(2) != 0
    (record,) = read_records(training.spec.place.attempt(2))
    assert record.failure_class == "storage"
    assert f"{name} was changed" in record.message
    assert "prepares it again" in record.message
    assert not training.events(2)
    assert digests_below(training.spec.place.checkpoints) == before
