"""The commands that errors print are accepted by the flow, and help."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow.flow_harness import Place, run_id_of


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_that_errors_print_are_accepted_by_the_flow(place: Place) -> None:
    place.write_config()
    first = place.call(place.run_words("--dry-run", "True"))
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    run = place.run_directory(run_id_of(first.stdout))
    again = place.run_words("--dry-run", "True", "--continue-from", str(run))

    rows = next(run.glob("prepared-*/*.arrow"))  # "prepares it again"
    rows.write_bytes(rows.read_bytes()[:-9] + b"otherwise")
    done = place.call(again)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert run_id_of(done.stdout) != run_id_of(first.stdout)

    (run / "plan.json").unlink()  # "prepare again: … --dry-run True --continue-from RUN", of a run without a training
    done = place.call(again)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run / "plan.json").is_file()

    make_spec(run)  # out of memory: the same command with fewer rows at a time
    for options in (("--micro-batch", "2"), ("--gradient-checkpointing", "on")):
        done = place.call([*again, *options])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for options in (("--learning-rate", "0.5"), ("--sequence-length", "128")):
        done = place.call([*again, *options])
        assert done.returncode == 1
        assert "--continue-from" in done.stdout + done.stderr


def make_spec(run: Path) -> None:
    """As the train step writes it before its first attempt."""
    from steps.flow.training import read_inputs
    from steps.protocol.rundir import RunDir, write_json

    spec, job = read_inputs(RunDir(run)).job(RunDir(run))
    write_json(job.directory.spec, spec.to_dict())
