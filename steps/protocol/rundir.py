"""The run directory: its paths, files written whole or not at all, its locks.

    <root>/<flow>/<run id>/
        prepared-<identity>/    train-<identity>/    merged-<identity>/    evaluation-<identity>/

Every stage and the worker use this module; it knows nothing of what is inside the files. All paths are absolute.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from steps.errors import StorageError
from steps.protocol.train_dir import AttemptDir, TrainDir

__all__ = ["AttemptDir", "TrainDir"]  # used from here by whoever knows a run directory

LINEAGE = "lineage.json"
"""Beside an adapter and in a merged model: what made them."""
GIB = 1024**3


def errnos(*names: str) -> frozenset[int]:
    """The numbers of these errors, as far as this platform knows them (a laptop is not always Linux)."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


AWAY = errnos("ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO")
"""What a network file system says whose server does not answer; a socket says the same of its peer."""
MAY_PASS = AWAY | errnos("EIO", "ESTALE", "EROFS")
"""A mount that failed over, or that the kernel turned read-only for a while: worth waiting for."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's directory."""

    path: Path

    @property
    def cancel(self) -> Path:
        """A person's request that the flows which were at work then begin nothing more."""
        return self.path / "cancel.json"

    def prepared(self, identity: str) -> Path:
        """Directory of prepared data."""
        return self.path / f"prepared-{identity}"

    def train(self, identity: str) -> TrainDir:
        """Directory of a training."""
        return TrainDir(self.path / f"train-{identity}")

    def merged(self, identity: str) -> Path:
        """Directory of a merged model."""
        return self.path / f"merged-{identity}"

    def evaluation(self, identity: str) -> Path:
        """Directory of an evaluation."""
        return self.path / f"evaluation-{identity}"


def sync_directory(path: Path) -> None:
    """fsync a directory, so that renames in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename: readers see the old file or the new one, never a part.

    Raises:
        StorageError: full or read-only disk, no permission.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
            sync_directory(path.parent)
    finally:
        with contextlib.suppress(
            OSError
        ):  # on a read-only file system even this fails; the first error is the one to tell
            beside.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """`write_atomic` of indented JSON. Half a surrogate pair, which is no UTF-8, is written as JSON's own escape.

    Raises:
        StorageError: as `write_atomic`.
    """
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        StorageError: missing, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(
            f"{path} is not valid JSON ({error}); it was damaged or edited: remove it and run again"
        ) from error
    if not isinstance(value, dict):
        found = "null" if value is None else type(value).__name__
        raise StorageError(f"{path}: expected a JSON object, found {found}")
    return value


@contextlib.contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A fresh directory beside `final`, renamed to it when the block ends well, removed when it does not.

    Every file in it is fsynced first. An existing `final` is left as it is (same identity, same content) and ours is dropped.

    Raises:
        StorageError: full or read-only disk, no permission.
    """
    beside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    try:
        with storage_errors(f"writing {final}"):
            beside.mkdir(parents=True)
            yield beside
            sync_tree(beside)
            with _existing_stays():
                beside.rename(final)
            sync_directory(final.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _existing_stays() -> Iterator[None]:
    """A rename onto a directory with files in it fails and changes nothing: no look first, no race."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def sync_tree(root: Path) -> None:
    """fsync every file and directory below `root`; links are not followed."""
    for folder, _, names in os.walk(root):
        for name in names:
            if Path(folder, name).is_symlink():
                continue
            descriptor = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn the operating system's storage errors into StorageError, with what to do about each."""
    advice = {
        errno.ENOSPC: "the disk is full: free space there, or set storage.root to another disk",
        errno.EDQUOT: "the quota is used up: free space there, or set storage.root elsewhere",
        errno.EROFS: "the file system is read-only: set storage.root to a writable one",
        errno.EACCES: "no permission: make it writable for this user, or set storage.root elsewhere",
        errno.EPERM: "no permission: make it writable for this user, or set storage.root elsewhere",
        errno.ENOTDIR: "a part of that path is a file, not a folder: move it away, or set storage.root elsewhere",
        errno.EISDIR: "a folder stands where a file has to be: move it away, or set storage.root elsewhere",
        errno.EEXIST: "a file stands where a folder has to be: move it away, or set storage.root elsewhere",
        errno.ENOENT: "a file or folder is gone, or can never be there: was it removed, or is its file system not mounted?",
        errno.EFBIG: "a file grew over the file system's or this user's limit (`ulimit -f`)",
        errno.ESTALE: "the file system went away and came back: look at the mount, then run again",
        errno.EIO: "the device reports an input/output error: check the disk or the mount",
        **dict.fromkeys(AWAY, "the file server does not answer: look at the mount, then run again"),
    }
    try:
        yield
    except OSError as error:
        is_peer = error.errno in AWAY and error.filename is None  # of a download, say
        if error.errno not in advice or is_peer:
            raise
        raise StorageError(f"{doing}: {advice[error.errno]}") from error


def require_space(
    folder: Path, needed_bytes: int, *, keep_gib: float, what: str, setting: str = "storage.root"
) -> None:
    """Check the disk before a large write. `setting` names what a person changes to write elsewhere.

    Raises:
        StorageError: fewer than `needed_bytes` + `keep_gib` are free where `folder` is (or will be).
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    wanted = needed_bytes + int(keep_gib * GIB)
    if free < wanted:
        raise StorageError(
            f"{what} needs {needed_bytes / GIB:.1f} GiB in {folder} and leaves {keep_gib:g} GiB (storage.min_free_gib), "
            f"but only {free / GIB:.1f} GiB are free; free space there, or set {setting} to another disk"
        )


def require_there(folder: Path) -> None:
    """A directory that was there still is: whoever writes below it would else make it again, empty, or below an unmounted place.

    Raises:
        StorageError: it is not; caused by an error that may pass, since a mount may come back.
    """
    if not folder.is_dir():
        cause = OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))
        raise StorageError(
            f"{folder} is gone: it was removed, or its file system is not mounted any more; look at the mount"
        ) from cause


@contextlib.contextmanager
def held_lock(path: Path, *, timeout_s: float, what: str) -> Iterator[None]:
    """Hold an advisory lock file; it is released by the operating system when the process dies.

    Raises:
        StorageError: another process still holds it after `timeout_s`, or it cannot be written.
    """
    lock = FileLock(path)
    try:
        with storage_errors(f"locking {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise StorageError(
            f"{what}: another process has held {path} for {timeout_s:g} s; wait for it, or find it with "
            f"`{shlex.join(['fuser', str(path)])}`"
        ) from error
    try:
        yield
    finally:
        lock.release()


def run_directory(root: str, project: Path, flow: str, run_id: str) -> RunDir:
    """The absolute directory of a run; a relative `root` starts at the project's folder."""
    base = Path(root)
    with contextlib.suppress(RuntimeError):  # `~nobody/x`: an unknown user's home stays a folder of that name
        base = base.expanduser()
    return RunDir((base if base.is_absolute() else project / base) / flow / str(run_id))
