"""Tasks of a merge over several processes, one of which is killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from steps.errors import StorageError
from steps.merge import stream
from steps.merge.stream import Task, Worker
from steps.protocol.safetensors_header import StoredTensor


class DiesAtWork(Worker):
    def perform(self, task: Task) -> int:
        os._exit(9)


def test_a_process_that_dies_is_a_clear_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "Worker", DiesAtWork)
    tensor = StoredTensor(Path("/nowhere"), "w", "F32", (1, 1), 0)
    with pytest.raises(StorageError, match="a process that merges was killed"):
        stream.run([Task(tensor, tensor, 0, 1)], {}, processes=2, exact_as_torch=False)
