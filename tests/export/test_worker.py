"""The compile job on one node: its events, its result, its failures; and which of the two ways a flow takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.export import worker
from steps.export.compile import CompiledModel
from steps.flow.neuron_jobs import check_inference, compile_job, compile_merged, describe, request_of
from steps.job.job import Job
from steps.job.outcome import result_damage
from steps.protocol.events import EventTail
from steps.protocol.failure_record import read_records
from steps.protocol.records import MergedModel
from steps.protocol.rundir import RunDir, TrainDir, read_json
from steps.settings.config import Settings
from steps.settings.plan import Plan
from tests.merge.merge_records import plan

CONFIG = {"model_type": "llama", "dtype": "bfloat16", "num_attention_heads": 32, "max_position_embeddings": 131072}
SERVED = {"enabled": True, "batch_size": 4, "tensor_parallel": 8, "instance_type": "trn1.32xlarge"}


def wanting(**changes: Any) -> Plan:
    """A plan that wants the merged model compiled."""
    made = plan()
    inference = made.settings.inference.model_copy(update={**SERVED, **changes})
    return made.model_copy(update={"settings": made.settings.model_copy(update={"inference": inference})})


@pytest.fixture
def merged(tmp_path: Path) -> MergedModel:
    folder = tmp_path / "merged-x"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return MergedModel(str(folder), "x", "m" * 64, "bfloat16", 1, 1, 1, 1.0)


def test_without_a_compiler_it_is_skipped_and_says_what_would_do_it(merged: MergedModel, tmp_path: Path) -> None:
    found = compile_merged(None, wanting(), merged, RunDir(tmp_path))  # type: ignore[arg-type]  # no job is run
    assert "not installed here" in found.skipped
    assert found.parents == {"merged": merged.digest}
    assert describe(found).startswith("not compiled: ")
    assert "optimum-cli export neuron --model" in describe(found)


def test_what_cannot_be_compiled_is_refused_before_a_job_is_made(merged: MergedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inference\.dtype"):
        compile_merged(None, wanting(dtype="fp32"), merged, RunDir(tmp_path))  # type: ignore[arg-type]


def test_what_cannot_be_compiled_is_refused_before_anything_is_fetched() -> None:
    preset = {name: value for name, value in CONFIG.items() if name != "dtype"}
    check_inference(wanting(), CONFIG)
    check_inference(wanting(), preset)
    check_inference(plan(), {})
    with pytest.raises(
        ConfigError, match=r"inference\.tensor_parallel: must divide the model's 32 attention heads, got 3"
    ):
        check_inference(wanting(tensor_parallel=3), preset)
    with pytest.raises(ConfigError, match=r"inference\.dtype: must be the merged model's type, float32"):
        check_inference(wanting(), {**preset, "torch_dtype": "float32"})
    check_inference(wanting().model_copy(update={"merge_dtype": "bf16"}), {**preset, "torch_dtype": "float32"})


def test_tensor_parallel_is_the_trainings_unless_given() -> None:
    assert request_of(wanting()).tensor_parallel == 8
    assert request_of(wanting(tensor_parallel=0).model_copy(update={"tensor_parallel": 4})).tensor_parallel == 4


def test_the_job_is_one_process_that_leaves_a_record(merged: MergedModel, tmp_path: Path) -> None:
    asked = wanting()
    job = compile_job(asked, merged, request_of(asked), RunDir(tmp_path), "id")
    assert (job.world, job.step, job.directory.path) == (1, "compile", tmp_path / "compile-id")
    assert start(job.directory, dict(job.spec)) == 0
    events = EventTail(job.directory.events(1)).read_new()
    assert [event.kind for event in events] == ["started", "model_loaded", "finished"]
    assert result_damage(job.directory, events[-1].data) is None
    found = CompiledModel.from_dict(read_json(job.directory.path / events[-1].data["result"] / "compile.json"))
    assert "not installed here" in found.skipped


def start(directory: TrainDir, spec: dict[str, Any]) -> int:
    directory.attempt(1).mkdir(parents=True)
    directory.spec.write_text(json.dumps(spec))
    return worker.main([str(directory.spec), "--attempt", "1"])


class Node:
    """`current.pytorchjob` with one node: it runs the job's program to its end."""

    def run(self, job: Job, settings: Settings, *, title: str, facts: Mapping[str, object]) -> SimpleNamespace:
        self.limit_s, self.title, self.facts = settings.deadlines.first_step_s, title, facts
        assert start(job.directory, dict(job.spec)) == 0
        (told,) = (event.data for event in EventTail(job.directory.events(1)).read_new() if event.kind == "finished")
        return SimpleNamespace(result_dir=job.directory.path / told["result"])


def test_on_a_cluster_a_node_compiles_and_its_record_is_the_artifact(merged: MergedModel, tmp_path: Path) -> None:
    asked, node = wanting(limit_s=7200.0), Node()
    launcher = asked.settings.launcher.model_copy(update={"kind": "pytorchjob"})
    asked = asked.model_copy(update={"settings": asked.settings.model_copy(update={"launcher": launcher})})
    found = compile_merged(node, asked, merged, RunDir(tmp_path))  # type: ignore[arg-type]
    assert "not installed here" in found.skipped
    assert found.parents == {"merged": merged.digest}
    assert (node.limit_s, node.facts["tensor_parallel"]) == (7200.0, 8)
    assert node.title.startswith("Compiling ")


def test_a_failure_is_recorded_with_its_class(merged: MergedModel, tmp_path: Path) -> None:
    asked = wanting(sequence_length=10**6)
    job = compile_job(asked, merged, request_of(asked), RunDir(tmp_path), "id")
    assert start(job.directory, dict(job.spec)) == 65
    (record,) = read_records(job.directory.attempt(1))
    assert (record.failure_class, "inference.sequence_length" in record.message) == ("config", True)


def test_a_compiled_model_is_told_with_its_size() -> None:
    assert describe(CompiledModel("/c", "", "x", "d", 2**30, {})).startswith("compiled model: /c, 1.0 GiB")
