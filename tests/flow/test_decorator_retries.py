"""After which errors Metaflow's own @retry may start a step again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steps.errors import (
    ClusterError,
    JobCancelled,
    JobPermanentError,
    JobRetriesExhausted,
    JobTimeout,
    LoraFlowError,
    StorageError,
)
from steps.flow.decorator import pytorchjob
from steps.flow.metaflow_internals import EXIT_NO_RETRY
from steps.flow.parameters import FlowError
from tests.flow.flow_harness import Place, run_id_of


def after(error: Exception) -> Any:
    return pytorchjob.post_step(object.__new__(pytorchjob), "train", None, error)


@pytest.mark.parametrize("kind", [JobPermanentError, JobRetriesExhausted, JobTimeout, JobCancelled])
def test_a_final_error_is_told_once_and_not_tried_again(
    kind: type[LoraFlowError], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        after(kind("it is over"))
    assert caught.value.code == EXIT_NO_RETRY
    assert capsys.readouterr().err.count("it is over") == 1


@pytest.mark.parametrize("kind", [StorageError, ClusterError])
def test_what_may_pass_is_tried_again(kind: type[LoraFlowError]) -> None:
    assert isinstance(after(kind("away")), FlowError)


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_a_training_that_is_out_of_time_is_not_begun_again_by_metaflow(place: Place) -> None:
    """A real flow, whose train step has Metaflow's own @retry: the deadline is told once, and there is one try."""
    place.write_config(deadlines={"total_s": 5})
    done = place.call(place.run_words("--max-steps", "100000"))
    said = done.stdout + done.stderr
    assert done.returncode == 1, said[-3000:]
    assert said.count(f"{JobTimeout.headline}:") == 1, said[-3000:]
    (history,) = place.run_directory(run_id_of(said)).glob("train-*/history.json")
    told = json.loads(history.read_text())
    assert (len(told["attempts"]), told["verdict"]["kind"]) == (1, "timeout")
    (task,) = (place.folder / ".metaflow" / "LoraFlow" / run_id_of(said) / "train").glob("[0-9]*")
    tries = {path.name.split(".")[0] for path in task.glob("[0-9]*.*")}
    assert tries == {"0"}, sorted(tries)
