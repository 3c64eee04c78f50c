"""The run directory: paths, files and directories whole or not at all, locks, space."""

from __future__ import annotations

import errno
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.errors import StorageError
from steps.protocol.rundir import (
    GIB,
    RunDir,
    TrainDir,
    held_lock,
    new_directory,
    read_json,
    require_space,
    run_directory,
    storage_errors,
    write_atomic,
    write_json,
)


def test_paths_are_as_the_layout_says() -> None:
    run = RunDir(Path("/r"))
    train = run.train("abc")
    assert run.prepared("abc") == Path("/r/prepared-abc")
    assert run.merged("abc") == Path("/r/merged-abc")
    assert run.evaluation("abc") == Path("/r/evaluation-abc")
    assert train == TrainDir(Path("/r/train-abc"))
    names = ["spec", "writers", "checkpoints", "adapter", "history", "lock"]
    assert [getattr(train, name).name for name in names] == [
        "spec.json",
        "writers",
        "checkpoints",
        "adapter",
        "history.json",
        "supervisor.lock",
    ]
    assert train.events(3) == Path("/r/train-abc/attempts/003/events.jsonl")


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (".lora", "/project/.lora/Flow/7"),
        ("/fsx/lora", "/fsx/lora/Flow/7"),
        ("~/lora", "/home/me/lora/Flow/7"),
        ("~nosuchuser/x", "/project/~nosuchuser/x/Flow/7"),
    ],
    ids=["relative", "absolute", "home", "unknown-user"],
)
def test_a_run_directory_is_absolute(root: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert run_directory(root, Path("/project"), "Flow", "7").path == Path(expected)


@settings(deadline=None, max_examples=20)  # each example is fsynced
@given(content=st.binary(max_size=100))
def test_a_file_is_written_whole_and_nothing_stays_beside_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("a")
    write_atomic(folder / "new" / "a", b"old")
    write_atomic(folder / "new" / "a", content)
    assert (folder / "new" / "a").read_bytes() == content
    assert [path.name for path in (folder / "new").iterdir()] == ["a"]


def test_json_is_read_back_as_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, None, "×"]})
    assert read_json(tmp_path / "a.json") == {"é": [1, None, "×"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "expected a JSON object, found list"),
    ],
    ids=["missing", "empty", "truncated", "binary", "very-deep", "list"],
)
def test_a_damaged_json_file_is_a_storage_error_that_names_it(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StorageError, match=words) as caught:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value)


def test_a_directory_appears_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    with new_directory(tmp_path / "runs" / "merged") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("1")
        (folder / "link").symlink_to("nowhere")
        assert not (tmp_path / "runs" / "merged").exists()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["merged"]
    assert (tmp_path / "runs" / "merged" / "inner" / "a").read_text() == "1"


def test_a_directory_whose_making_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="midway"), new_directory(tmp_path / "merged") as folder:  # noqa: PT012
        (folder / "a").write_text("1")
        raise ValueError("midway")
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_of_one_directory_the_first_stays(tmp_path: Path) -> None:
    with new_directory(tmp_path / "merged") as late:
        (late / "a").write_text("late")
        with new_directory(tmp_path / "merged") as early:
            (early / "a").write_text("early")
    assert (tmp_path / "merged" / "a").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_directory_that_cannot_be_renamed_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="was it removed"), new_directory(tmp_path / "merged") as folder:
        folder.rmdir()
    with pytest.raises(StorageError, match="was it removed"), new_directory(tmp_path / "merged") as folder:
        folder.rename(tmp_path / "stolen")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EIO, "input/output error"),
        (errno.ESTALE, "look at the mount"),
        (errno.EFBIG, "ulimit -f"),
        (errno.ENOTDIR, "a file, not a folder"),
        (errno.EEXIST, "a file stands where a folder has to be"),
        (errno.ENOENT, "was it removed, or is its file system not mounted"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_what_the_disk_refuses_is_told_with_what_to_do(number: int, words: str) -> None:
    with pytest.raises(StorageError, match=words) as caught, storage_errors("writing /x"):
        raise OSError(number, "refused")
    assert str(caught.value).startswith("writing /x: ")
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_of_the_system_pass_unchanged() -> None:
    with pytest.raises(ConnectionResetError), storage_errors("writing /x"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_too_little_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 0, keep_gib=0, what="the merge")
    with pytest.raises(StorageError, match=r"the merge needs 1048576\.0 GiB .* leaves 2 GiB .* GiB are free"):
        require_space(tmp_path / "not" / "yet", 2**20 * GIB, keep_gib=2, what="the merge")


def hold(path: Path, ready: object, done: object) -> None:
    with held_lock(path, timeout_s=5, what="holding"):
        ready.set()  # type: ignore[attr-defined]
        done.wait(30)  # type: ignore[attr-defined]


def test_a_lock_that_another_process_holds_is_refused_with_its_path_and_free_after_its_death(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "a" / "x.lock", ready, done))
    other.start()
    assert ready.wait(60)
    with (
        pytest.raises(StorageError, match=r"preparing: another process has held .*x\.lock"),
        held_lock(tmp_path / "a" / "x.lock", timeout_s=0.05, what="preparing"),
    ):
        pass
    other.kill()
    other.join()
    with held_lock(tmp_path / "a" / "x.lock", timeout_s=5, what="preparing"):
        assert (tmp_path / "a" / "x.lock").exists()
