"""The door of the merge room: whole or not at all, and not twice."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from steps.errors import CheckpointError, StorageError
from steps.merge import stage
from steps.merge.inputs import read_base
from steps.protocol.records import MergedModel
from steps.protocol.rundir import RunDir
from tests.merge.conftest import Workshop, adapted, load, stored
from tests.merge.merge_records import LINEAGE, adapter_record, base_record, merge, plan
from tests.shared.small_disk import disk_of


@pytest.fixture
def base(workshop: Workshop) -> Path:
    return workshop.base("bfloat16", dtype="bfloat16")


@pytest.fixture
def adapter(workshop: Workshop, base: Path) -> Path:
    return workshop.adapter_once(base, "stage-adapter", r=4, target_modules=["q_proj", "down_proj"])


def finals(run: Path) -> list[str]:
    """What a later stage would find."""
    return [path.name for path in run.glob("merged-*")] if run.exists() else []


def test_the_merged_folder_loads_and_computes_what_the_adapted_model_does(workshop: Workshop, tmp_path: Path) -> None:
    import torch

    base = workshop.base("fp32-32", hidden_size=32)
    adapter = workshop.adapter_once(base, "stage-fp32", r=4, target_modules=["q_proj", "down_proj"])
    folder = Path(merge(base, adapter, tmp_path).path)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = adapted(base, adapter).eval()(tokens).logits
        torch.testing.assert_close(load(folder, "auto").eval()(tokens).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_record_says_what_was_written(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = merge(base, adapter, tmp_path)
    folder = Path(merged.path)
    assert folder == tmp_path / f"merged-{merged.identity}"
    record = base_record(base)
    assert merged.parents == {"base": record.digest, "adapter": adapter_record(adapter, record).digest}
    assert (merged.dtype, merged.tensors, merged.merged_tensors) == ("bfloat16", len(stored(base)), 4)
    assert merged.bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert MergedModel.from_dict(json.loads((folder / stage.RECORD).read_text())["record"]) == merged


@pytest.mark.parametrize(("asked", "written"), [("fp32", "float32"), ("fp16", "float16")])
def test_the_merged_weights_have_the_type_that_was_asked_for(
    base: Path, adapter: Path, tmp_path: Path, asked: str, written: str
) -> None:
    told: list[int] = []
    own = merge(base, adapter, tmp_path)
    merged = merge(base, adapter, tmp_path, lambda what, done, of: told.append(of), merge_dtype=asked)
    folder = Path(merged.path)
    assert {str(tensor.dtype) for tensor in stored(folder).values()} == {f"torch.{written}"}
    assert merged.dtype == json.loads((folder / "config.json").read_text())["dtype"] == written
    assert max(told) == pytest.approx(merged.bytes, rel=0.05)
    assert merged.identity != own.identity
    assert merge(base, adapter, tmp_path, merge_dtype="bf16").identity == own.identity


def test_the_lineage_lies_beside_the_weights(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = Path(merge(base, adapter, tmp_path).path)
    assert json.loads((folder / "lineage.json").read_text()) == LINEAGE


def test_the_tokenizer_gets_the_template_that_the_adapter_was_trained_with(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(adapter, trained)
    (trained / "chat_template.jinja").write_text("{{ messages }}")
    folder = Path(merge(base, trained, tmp_path).path)
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert "chat_template.jinja" in json.loads((folder / stage.RECORD).read_text())["files"]


def test_a_completed_card_is_no_damage(base: Path, adapter: Path, tmp_path: Path) -> None:
    first = merge(base, adapter, tmp_path)
    folder = Path(first.path)
    (folder / "README.md").write_text("with the score")
    (folder / "lineage.json").write_text("{}")
    record = json.loads((folder / stage.RECORD).read_text())
    record["files"]["README.md"] = {"bytes": 1, "sha256": "of an earlier version"}
    (folder / stage.RECORD).write_text(json.dumps(record))
    assert merge(base, adapter, tmp_path) == first
    assert (folder / "README.md").read_text() == "with the score"


def test_the_digest_is_the_models_and_not_the_runs(base: Path, adapter: Path, tmp_path: Path) -> None:
    record = base_record(base)
    digests = {
        stage.merge(
            plan(), record, adapter_record(adapter, record), RunDir(tmp_path / run), lineage={"run": run}
        ).digest
        for run in ("1", "2")
    }
    assert len(digests) == 1


def test_progress_is_told_in_bytes_and_ends_at_the_whole(base: Path, adapter: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    merge(base, adapter, tmp_path, lambda *item: told.append(item))
    assert {(what, of) for what, _, of in told} == {("merge, bytes", read_base(base).bytes)}
    assert told[-1][1] == sum(tensor.bytes for tensor in read_base(base).tensors.values())


def test_a_whole_merge_is_used_again(base: Path, adapter: Path, tmp_path: Path) -> None:
    first = merge(base, adapter, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}
    assert merge(base, adapter, tmp_path) == first
    assert {path.name: path.stat().st_mtime_ns for path in Path(first.path).iterdir()} == before


def test_a_file_added_by_a_person_does_no_harm(base: Path, adapter: Path, tmp_path: Path) -> None:
    first = merge(base, adapter, tmp_path)
    (Path(first.path) / "notes.txt").write_text("mine")
    assert merge(base, adapter, tmp_path) == first


def flip_a_bit(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a weight": (flip_a_bit, "has changed"),
    "a file lost": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "a shard truncated": (lambda folder: os.truncate(next(folder.glob("*.safetensors")), 100), "100 are there"),
    "the record lost": (lambda folder: (folder / stage.RECORD).unlink(), "its record cannot be used"),
    "the record no JSON": (lambda folder: (folder / stage.RECORD).write_text("{"), "its record cannot be used"),
    "the record of another kind": (lambda folder: (folder / stage.RECORD).write_text("{}"), "record cannot be used"),
    "the record's files a list": (
        lambda folder: (folder / stage.RECORD).write_text(
            json.dumps(json.loads((folder / stage.RECORD).read_text()) | {"files": []})
        ),
        "its record cannot be used",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_merge_is_set_aside_and_made_again(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = merge(base, adapter, tmp_path)
    damage(Path(first.path))
    again = merge(base, adapter, tmp_path)
    assert replace(again, seconds=first.seconds) == first
    assert stage._find_whole(Path(again.path)) == again
    assert words in caplog.text
    assert [path.name for path in tmp_path.glob(".*damaged*")] == [f".merged-{first.identity}.damaged"]


def test_an_adapter_of_another_base_is_refused_with_both_digests(base: Path, adapter: Path, tmp_path: Path) -> None:
    record = base_record(base)
    of_another = replace(adapter_record(adapter, record), parents={"base": "a" * 64})
    with pytest.raises(CheckpointError, match=f"{'a' * 64}.*{record.digest}.*merge it with its own base"):
        stage.merge(plan(), record, of_another, RunDir(tmp_path), lineage={})
    assert finals(tmp_path) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(base: Path, adapter: Path, tmp_path: Path) -> None:
    with disk_of(tmp_path / "disk", 1 << 20) as disk:
        with pytest.raises(StorageError, match=r"the merged model needs 0\.1 GiB in .*free space there"):
            merge(base, adapter, disk)
        assert finals(disk) == []


def test_a_disk_that_fills_while_the_weights_are_written_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SMALL_FILES_BYTES", 0)
    pages = -(-read_base(base).bytes // 4096)
    with disk_of(tmp_path / "disk", pages * 4096) as disk:
        with pytest.raises(StorageError, match=r"writing .*merged-.*the disk is full"):
            merge(base, adapter, disk)
        assert [path for path in disk.iterdir() if path.is_dir()] == []


def test_a_disk_that_fills_after_the_weights_leaves_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    with disk_of(tmp_path / "disk", 80 << 20) as disk:

        def fill(what: str, done: int, of: int) -> None:
            with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))

        with pytest.raises(StorageError, match="the disk is full"):
            merge(base, adapter, disk, fill)
        assert [path for path in disk.iterdir() if path.is_dir()] == []


def test_a_file_size_limit_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="ulimit -f"):
            merge(base, adapter, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert finals(tmp_path) == []


def test_an_interrupted_merge_leaves_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, tmp_path, interrupt)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_killed_merge_leaves_no_final_directory_and_the_next_one_cleans_up(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    child = os.fork()
    if not child:
        try:
            merge(base, adapter, tmp_path, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert finals(tmp_path) == []
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    merged = merge(base, adapter, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [Path(merged.path)]
