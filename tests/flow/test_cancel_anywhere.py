"""A real flow, watched from outside: somebody holds its run directory at every moment, and a cancel before the training holds."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from steps.job.agent.in_use import flows_of, users_of
from tests.flow.flow_harness import PROJECT, Place, run_id_of, wait_until


def cancel(place: Place, run_id: str) -> str:
    words = [sys.executable, "-m", "steps.cli", "cancel", run_id, "--root", str(place.folder / "runs")]
    done = subprocess.run(words, cwd=PROJECT, env=place.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_never_without_a_user_from_its_preparation_to_its_end(place: Place) -> None:
    place.write_config()
    log = place.folder / "log.txt"
    flow = place.start(place.run_words(), log)
    run = wait_until(lambda: next(place.folder.glob("runs/*/*/.in-use"), None), timeout_s=120, what="a stage").parent
    looks: list[bool] = []
    seen: set[str] = set()

    def watch() -> None:
        while flow.poll() is None:
            users = users_of(run)
            seen.update(user.what for user in users)
            looks.append(bool(users))
            time.sleep(0.02)

    watching = threading.Thread(target=watch)
    watching.start()
    assert flow.wait(500) == 0, log.read_text()[-3000:]
    watching.join()
    assert {"prepare", "train", "merge", "evaluate", "a flow that is between two steps"} <= seen
    assert True not in looks[looks.index(False) :], "nobody until the next user came"
    assert users_of(run) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cancel_while_data_is_prepared_keeps_the_training_from_beginning(place: Place) -> None:
    place.write_config()
    log = place.folder / "log.txt"
    flow = place.start(place.run_words(), log)
    run: Path = wait_until(
        lambda: next(place.folder.glob("runs/*/*/.in-use"), None), timeout_s=120, what="a stage"
    ).parent
    assert list(flows_of(run)) == [run.name]
    assert "its flow begins nothing after that" in cancel(place, run.name)
    assert flow.wait(300) != 0
    said = log.read_text()
    assert "somebody cancelled" in said or "a person cancelled" in said
    assert not list(run.glob("train-*/attempts/*"))
    assert "`resume` goes on" in said
    again = place.call(place.command("resume", "--origin-run-id", run_id_of(said)))
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
