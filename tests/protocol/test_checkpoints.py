"""Checkpoints: which are complete, which one is chosen, which may go; and everything that can be wrong with one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.errors import CheckpointError, StorageError
from steps.protocol import checkpoints
from steps.protocol.checkpoints import (
    COMPLETE,
    Checkpoint,
    Rejected,
    checkpoint_path,
    choose,
    commit,
    damage,
    directories,
    newest_step,
    prune,
    read,
    set_aside_damaged,
)
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import classify_exception
from steps.protocol.records import digest_file
from steps.protocol.writer import Writer

ME = Writer(2, 1)
IDENTITY = "abc123"


def save(folder: Path, step: int, writer: Writer = ME, *, identity: str = IDENTITY, **layout: Any) -> Checkpoint:
    path = checkpoint_path(folder, step, writer)
    (path / "inner").mkdir(parents=True)
    (path / "state.bin").write_bytes(step.to_bytes(64, "little"))
    (path / "inner" / "more.bin").write_bytes(b"more")
    return commit(path, step=step, writer=writer, identity=identity, layout=layout, metrics={"loss": 1.5})


def edit(**changes: Any) -> Callable[[Path], None]:
    """Change or (with ...) remove keys of COMPLETE.json."""

    def apply(path: Path) -> None:
        raw = json.loads((path / COMPLETE).read_text())
        raw.update(changes)
        (path / COMPLETE).write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))

    return apply


def record(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / COMPLETE).write_bytes(content) and None


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "state.bin").read_bytes())
    content[5] ^= 0x10
    (path / "state.bin").write_bytes(content)


def put_link(path: Path) -> None:
    (path / "state.bin").rename(path.parent / "elsewhere.bin")
    (path / "state.bin").symlink_to(path.parent / "elsewhere.bin")


def link_record(path: Path) -> None:
    (path / COMPLETE).rename(path.parent / "record.json")
    (path / COMPLETE).symlink_to(path.parent / "record.json")


def put_directory(path: Path) -> None:
    (path / "state.bin").unlink()
    (path / "state.bin").mkdir()


ENTRY = {"bytes": 64, "sha256": "0" * 64}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: (path / "state.bin").write_bytes(b"short"), "state.bin has 5 bytes, 64 were saved"),
    "zero-length": (lambda path: (path / "state.bin").write_bytes(b""), "state.bin has 0 bytes, 64 were saved"),
    "grown": (lambda path: (path / "state.bin").write_bytes(bytes(65)), "state.bin has 65 bytes, 64 were saved"),
    "bit-flipped": (flip_a_bit, "state.bin has other content than was saved"),
    "missing": (lambda path: (path / "state.bin").unlink(), "state.bin is missing"),
    "missing-inside": (lambda path: shutil.rmtree(path / "inner"), "inner/more.bin is missing"),
    "extra": (lambda path: (path / "new.bin").write_bytes(b"x"), "holds new.bin, which its save did not write"),
    "extra-record-inside": (lambda path: (path / "inner" / COMPLETE).write_text("{}"), f"holds inner/{COMPLETE}, which"),
    "extra-link": (lambda path: (path / "link").symlink_to("nowhere"), "holds link, which its save did not write"),
    "a-link-instead": (put_link, "state.bin is a link, a file was saved"),
    "a-directory-instead": (put_directory, "state.bin is missing"),
    "no-record": (lambda path: (path / COMPLETE).unlink(), f"has no {COMPLETE}: its save was cut off"),
    "record-is-a-directory": (lambda path: ((path / COMPLETE).unlink(), (path / COMPLETE).mkdir()), f"has no {COMPLETE}"),
    "record-is-a-link": (link_record, f"has no {COMPLETE}"),
    "record-empty": (record(b""), f"unreadable {COMPLETE}"),
    "record-truncated": (lambda path: (path / COMPLETE).write_bytes((path / COMPLETE).read_bytes()[:60]), "not valid JSON"),
    "record-binary": (record(b"\xff\x00\xfe"), "not valid JSON"),
    "record-very-deep": (record(b"[" * 100_000), "not valid JSON"),
    "record-is-a-list": (record(b"[]"), "expected a JSON object, found list"),
    "no-files-key": (edit(files=...), "files: expected dict, found None"),
    "files-is-a-list": (edit(files=["state.bin"]), "files: expected dict, found ['state.bin']"),
    "file-without-size": (edit(files={"state.bin": {"sha256": ""}}), "file 'state.bin': expected bytes and sha256"),
    "file-is-a-number": (edit(files={"state.bin": 64}), "file 'state.bin': expected bytes and sha256, found 64"),
    "size-is-a-word": (edit(files={"state.bin": {"bytes": "64", "sha256": ""}}), "expected bytes and sha256"),
    "name-leads-out": (edit(files={"../elsewhere": ENTRY}), "file '../elsewhere' would be outside of the checkpoint"),
    "name-leads-out-later": (edit(files={"inner/../../x": ENTRY}), "would be outside of the checkpoint"),
    "name-is-absolute": (edit(files={"/etc/passwd": ENTRY}), "file '/etc/passwd' would be outside of the checkpoint"),
    "name-is-empty": (edit(files={"": ENTRY}), " is missing"),
    "name-holds-nul": (edit(files={"a\0": ENTRY}), " is missing"),
    "step-is-a-word": (edit(step="200"), "step: expected int, found '200'"),
    "step-is-true": (edit(step=True), "step: expected int, found True"),
    "step-is-infinite": (edit(step=float("inf")), "step: expected int, found inf"),
    "step-of-another": (edit(step=300), "it is of step 300, claim '002-01': another directory's"),
    "claim-of-another": (edit(claim="009-01"), "claim '009-01': another directory's"),
    "claim-unreadable": (edit(claim="me"), "claim 'me': another directory's"),
    "layout-is-null": (edit(layout=None), "layout: expected dict, found None"),
    "identity-is-a-number": (edit(identity=7), "identity: expected str, found 7"),
}  # fmt: skip
WHOLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer-format": (
        edit(schema="hyperpod-lora/checkpoint/2"),
        "has schema 'hyperpod-lora/checkpoint/2', this version reads",
    ),
    "no-schema": (edit(schema=...), "has schema None"),
    "other-identity": (edit(identity="other"), f"belongs to training other, not {IDENTITY}"),
    "other-layout": (edit(layout={"world": 4}), "does not fit: saved by 4 processes"),
}


def fits(layout: dict[str, Any]) -> str | None:
    return f"saved by {layout['world']} processes" if layout.get("world", 1) != 1 else None


@pytest.mark.parametrize(("harm", "words"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_set_aside_with_a_reason_and_the_one_before_is_used(
    tmp_path: Path, harm: Callable[[Path], object], words: str
) -> None:
    older, newest = save(tmp_path, 100, Writer(1, 1)), save(tmp_path, 200)
    harm(newest.path)
    choice = choose(tmp_path, identity=IDENTITY, fits=fits)
    assert choice.checkpoint == older
    assert [item.path for item in choice.rejected] == [newest.path]
    assert words in choice.rejected[0].reason
    assert newest.path.name in choice.rejected[0].reason
    assert set_aside_damaged(choice.rejected) == [newest.path.with_name(newest.path.name + ".damaged")]
    assert damage(older) is None
    assert choose(tmp_path, identity=IDENTITY, fits=fits).rejected == ()


@pytest.mark.parametrize(("change", "words"), WHOLE.values(), ids=WHOLE.keys())
def test_a_whole_checkpoint_of_something_else_is_passed_over_and_stays(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    older, newest = save(tmp_path, 100), save(tmp_path, 200)
    change(newest.path)
    choice = choose(tmp_path, identity=IDENTITY, fits=fits)
    assert choice.checkpoint == older
    assert words in choice.rejected[0].reason
    assert set_aside_damaged(choice.rejected) == []
    assert newest.path.is_dir()


AWAY = ["EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EACCES"]


@pytest.mark.parametrize("name", AWAY)
@pytest.mark.parametrize("function", ["digest_file", "read_json"])
def test_nothing_older_is_taken_in_the_place_of_a_checkpoint_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, name: str
) -> None:
    _, newest = save(tmp_path, 100), save(tmp_path, 200)
    whole = getattr(checkpoints, function)

    def failing(path: Path) -> object:
        if newest.path in path.parents:
            error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(path))
            if function == "read_json":
                raise StorageError(f"cannot read {path}") from error
            raise error
        return whole(path)

    monkeypatch.setattr(checkpoints, function, failing)
    with pytest.raises(StorageError, match=f"{newest.path.name} cannot be read .*nothing older is taken") as caught:
        choose(tmp_path, identity=IDENTITY)
    assert classify_exception(caught.value) is FailureClass.STORAGE
    assert newest.path.is_dir()
    monkeypatch.undo()
    assert choose(tmp_path, identity=IDENTITY).checkpoint == newest


def test_the_remedy_for_a_checkpoint_that_is_lost_for_good_works_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newest = save(tmp_path, 100), save(tmp_path, 200)

    def failing(path: Path) -> str:
        if newest.path in path.parents:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return digest_file(path)

    monkeypatch.setattr(checkpoints, "digest_file", failing)
    with pytest.raises(StorageError) as caught:
        choose(tmp_path, identity=IDENTITY)
    subprocess.run(str(caught.value).split("`")[1].split(), check=True)
    assert choose(tmp_path, identity=IDENTITY).checkpoint == older


def test_where_nothing_is_usable_nothing_is_chosen(tmp_path: Path) -> None:
    newest = save(tmp_path, 200)
    flip_a_bit(newest.path)
    choice = choose(tmp_path, identity=IDENTITY)
    assert choice.checkpoint is None
    assert len(choice.rejected) == 1
    assert choose(tmp_path / "missing", identity=IDENTITY) == checkpoints.Choice(None)


def test_what_is_gone_is_not_set_aside(tmp_path: Path) -> None:
    assert set_aside_damaged([Rejected(tmp_path / "gone", "it went", damaged=True)]) == []


def test_a_commit_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    committed = save(tmp_path, 200, world=2)
    assert read(committed.path) == committed
    assert committed.bytes == 68
    assert committed.metrics == {"loss": 1.5}
    assert sorted(committed.files) == ["inner/more.bin", "state.bin"]
    assert damage(committed) is None


def test_a_link_is_never_committed(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 100, ME)
    path.mkdir()
    (tmp_path / "elsewhere").write_text("x")
    (path / "state.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"state\.bin is a link"):
        commit(path, step=100, writer=ME, identity=IDENTITY, layout={})
    assert not (path / COMPLETE).exists()


def test_newest_means_the_highest_step_then_the_latest_writer_as_numbers(tmp_path: Path) -> None:
    order = [
        (1_000_000, Writer(1, 1)),
        (999_999, Writer(1, 1)),
        (20, Writer(10, 1)),
        (20, Writer(9, 2)),
        (20, Writer(9, 1)),
        (3, ME),
    ]
    for step, writer in sorted(order):
        save(tmp_path, step, writer)
    for name in ("step-1.001-01.damaged", "step-x.001-01", "other", ".step-000001.001-01"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000099.001-01").symlink_to(tmp_path / "step-000003.002-01")
    assert directories(tmp_path) == [checkpoint_path(tmp_path, *item) for item in order]
    assert newest_step(tmp_path) == 1_000_000
    assert newest_step(tmp_path / "missing") == 0
    found = [read(path) for path in directories(tmp_path)]
    assert sorted(found, key=lambda item: item.order, reverse=True) == found  # type: ignore[union-attr]


def test_a_partial_newest_is_not_the_newest_step(tmp_path: Path) -> None:
    save(tmp_path, 100)
    checkpoint_path(tmp_path, 200, ME).mkdir()
    assert newest_step(tmp_path) == 100


def test_prune_deletes_all_but_the_newest(tmp_path: Path) -> None:
    saved = [save(tmp_path, step) for step in (100, 200, 300, 400)]
    assert prune(tmp_path, keep=2, writer=ME, protect=[saved[0].path]) == [saved[1].path]
    assert directories(tmp_path) == [saved[index].path for index in (3, 2, 0)]


COMMITTED, PARTIAL, DAMAGED = "committed", "partial", "damaged"
plans = st.dictionaries(
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 2)),
    st.sampled_from([COMMITTED, COMMITTED, PARTIAL, DAMAGED]),
    max_size=8,
)


def build(folder: Path, plan: dict[tuple[int, int, int], str]) -> dict[Path, str]:
    built = {}
    for (step, attempt, incarnation), state in plan.items():
        path = save(folder, step, Writer(attempt, incarnation)).path
        if state == PARTIAL:
            (path / COMPLETE).unlink()
        if state == DAMAGED:
            flip_a_bit(path)
        built[path] = state
    return built


def quick_folder() -> Path:
    """In memory where the machine has such a place: every checkpoint is fsynced, and a busy disk would take seconds."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="checkpoints-", dir=memory if os.access(memory, os.W_OK) else None))


@settings(deadline=None, max_examples=30)  # each example writes and reads real directories
@given(plan=plans)
def test_the_newest_intact_checkpoint_is_chosen_and_never_a_damaged_one(
    plan: dict[tuple[int, int, int], str],
) -> None:
    folder = quick_folder()
    built = build(folder, plan)
    intact = [path for path in directories(folder) if built[path] == COMMITTED]
    choice = choose(folder, identity=IDENTITY)
    assert (choice.checkpoint.path if choice.checkpoint else None) == (intact[0] if intact else None)
    assert all(item.damaged and built[item.path] != COMMITTED for item in choice.rejected)
    shutil.rmtree(folder)


@settings(deadline=None, max_examples=30)
@given(plan=plans, keep=st.integers(-1, 4), attempt=st.integers(1, 4), data=st.data())
def test_prune_never_deletes_the_newest_complete_one_a_protected_one_or_a_newer_writers(
    plan: dict[tuple[int, int, int], str],
    keep: int,
    attempt: int,
    data: st.DataObject,
) -> None:
    folder = quick_folder()
    built = build(folder, {key: COMMITTED if state == DAMAGED else state for key, state in plan.items()})
    protected = data.draw(st.lists(st.sampled_from(sorted(built)), max_size=2)) if built else []
    before = choose(folder, identity=IDENTITY).checkpoint
    deleted = prune(folder, keep=keep, writer=Writer(attempt, 1), protect=protected)
    assert choose(folder, identity=IDENTITY).checkpoint == before
    assert not set(deleted) & set(protected)
    for path in deleted:
        writer = Writer.parse(path.name.split(".")[1])
        assert writer is not None
        assert writer <= Writer(attempt, 1)
        assert built[path] == COMMITTED
        assert not path.exists()
    remaining = [path for path, state in built.items() if state == COMMITTED and path.exists()]
    assert len(remaining) >= min(max(keep, 1), sum(state == COMMITTED for state in built.values()))
    shutil.rmtree(folder)


def test_a_deletion_cut_off_in_the_middle_leaves_a_partial_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = save(tmp_path, 100)
    save(tmp_path, 200)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None)
    prune(tmp_path, keep=1, writer=ME)
    assert (older.path / "state.bin").exists()
    assert isinstance(read(older.path), Rejected)
