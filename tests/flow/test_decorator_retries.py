"""After which errors Metaflow's own @retry may start a step again."""

from __future__ import annotations

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
