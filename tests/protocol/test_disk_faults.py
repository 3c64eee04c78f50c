"""Full, read-only and limited disks, for real: in every phase of a save the words are clear and nothing older is harmed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steps.errors import StorageError
from steps.flow.estimate import FILE
from steps.protocol import checkpoints, rundir
from steps.protocol.checkpoints import COMPLETE, Writer, checkpoint_path, choose, commit, prune, set_aside_damaged
from steps.protocol.events import EventTail, EventWriter
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import classify_exception, record_of, write_record
from steps.protocol.rundir import held_lock, new_directory, write_atomic, write_json
from steps.protocol.writer import register_writer
from tests.shared.small_disk import disk_of, fill

KIB = 1024
WRITER = Writer(1, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with disk_of(tmp_path / "disk", 256 * KIB) as disk:
        yield disk


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def save(folder: Path, step: int, *, size: int = 10, writer: Writer = WRITER) -> Path:
    path = checkpoint_path(folder, step, writer)
    path.mkdir(parents=True)
    (path / "state.bin").write_bytes(bytes(size))
    commit(path, step=step, writer=writer, identity="same", layout={})
    return path


@contextmanager
def storage_failure(*words: str) -> Iterator[None]:
    with pytest.raises(StorageError) as caught:
        yield
    assert classify_exception(caught.value) is FailureClass.STORAGE
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_file_that_does_not_fit_leaves_the_old_one(small_disk: Path) -> None:
    write_atomic(small_disk / "a.json", b"old")
    with storage_failure("writing", "a.json", "the disk is full", "storage.root"):
        write_atomic(small_disk / "a.json", bytes(512 * KIB))
    assert [path.name for path in small_disk.iterdir()] == ["a.json"]
    assert (small_disk / "a.json").read_bytes() == b"old"


def test_a_directory_that_does_not_fit_is_not_there_at_all(small_disk: Path) -> None:
    with storage_failure("the disk is full"), new_directory(small_disk / "prepared-x") as folder:
        (folder / "small").write_bytes(b"fits")
        (folder / "large").write_bytes(bytes(512 * KIB))
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_before_the_record_leaves_a_partial_checkpoint_and_the_older_one_is_used(
    small_disk: Path,
) -> None:
    older = save(small_disk / "checkpoints", 100)
    path = checkpoint_path(small_disk / "checkpoints", 200, WRITER)
    path.mkdir()
    (path / "state.bin").write_bytes(bytes(10))
    fill(small_disk)
    with storage_failure(COMPLETE, "the disk is full"):
        commit(path, step=200, writer=WRITER, identity="same", layout={})
    choice = choose(small_disk / "checkpoints", identity="same")
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == older
    assert [item.reason for item in choice.rejected] == [f"{path.name} has no {COMPLETE}: its save was cut off"]
    assert len(set_aside_damaged(choice.rejected)) == 1


def test_a_disk_that_fills_while_files_are_saved_leaves_the_older_checkpoint(small_disk: Path) -> None:
    older = save(small_disk / "checkpoints", 100)
    with storage_failure("the disk is full"), rundir.storage_errors("saving"):
        save(small_disk / "checkpoints", 200, size=512 * KIB)
    choice = choose(small_disk / "checkpoints", identity="same")
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == older


def test_a_torn_event_on_a_full_disk_costs_only_itself(small_disk: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        writer = EventWriter(small_disk / "events.jsonl", attempt=1, stream=nowhere)
        writer.emit("started", 0)
        fill(small_disk)
        with pytest.raises(OSError, match="No space left"):
            writer.emit("step", 1, text="x" * 8 * KIB)
        (small_disk / "filler").unlink()
        writer.emit("step", 2)
    tail = EventTail(small_disk / "events.jsonl")
    assert [(event.kind, event.step) for event in tail.read_new()] == [("started", 0), ("step", 2)]
    assert tail.foreign == 1


def lock(disk: Path) -> None:
    with held_lock(disk / "locks" / "a.lock", timeout_s=1, what="preparing"):
        pass


def fresh_directory(disk: Path) -> None:
    with new_directory(disk / "new"):
        pass


READ_ONLY: dict[str, Callable[[Path], object]] = {
    "write_atomic": lambda disk: write_atomic(disk / "a.json", b"new"),
    "write_atomic_in_a_new_folder": lambda disk: write_json(disk / "new" / "a.json", {}),
    "new_directory": fresh_directory,
    "held_lock": lock,
    "register_writer": lambda disk: register_writer(disk / "writers", 1),
    "commit": lambda disk: commit(disk / "uncommitted", step=1, writer=WRITER, identity="same", layout={}),
    "set_aside": lambda disk: set_aside_damaged(choose(disk / "checkpoints", identity="same").rejected),
    "prune": lambda disk: prune(disk / "checkpoints", keep=1, writer=WRITER),
    "failure_record": lambda disk: write_record(disk, record_of(ValueError(), rank=0, node="a", step=1, time_s=1.0)),
}


@pytest.mark.parametrize("action", READ_ONLY.values(), ids=READ_ONLY.keys())
def test_a_read_only_disk_is_said_to_be_one_and_nothing_changes(
    small_disk: Path, action: Callable[[Path], object]
) -> None:
    folder = small_disk / "checkpoints"
    complete = [save(folder, 100), save(folder, 200)]
    checkpoint_path(folder, 300, WRITER).mkdir()
    (small_disk / "uncommitted").mkdir()
    make_read_only(small_disk)
    with storage_failure("the file system is read-only", str(small_disk)):
        action(small_disk)
    assert [
        found.path for found in map(checkpoints.read, complete) if isinstance(found, checkpoints.Checkpoint)
    ] == complete


def test_a_checkpoint_on_a_read_only_disk_can_still_be_chosen(small_disk: Path) -> None:
    path = save(small_disk, 100)
    make_read_only(small_disk)
    choice = choose(small_disk, identity="same")
    assert choice.checkpoint is not None
    assert choice.checkpoint.path == path


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * KIB, hard))
    try:
        with storage_failure("grew over", "ulimit -f"):
            write_atomic(tmp_path / FILE, bytes(8 * KIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_nothing_may_be_made_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    if os.geteuid() == 0:  # permissions do not bind root, the immutable flag does
        if (
            not shutil.which("chattr")
            or subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode
        ):
            pytest.skip("root, and the file system has no immutable flag")
    else:
        folder.chmod(0o500)
    try:
        with storage_failure("no permission", "make it writable for this user"):
            write_atomic(folder / "a.json", b"new")
        with storage_failure("no permission"):
            register_writer(folder / "writers", 1)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-i", folder], check=True)
        folder.chmod(0o700)
