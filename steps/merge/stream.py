"""Weights through memory in cache-sized blocks: bytes in from the base, bytes out to their place in the merged file.

`run` works off the tasks of a merge in a few processes. What no change touches is copied by the kernel. Memory is a few MiB per
process whatever the model's size, plus one layer's adapter matrices. When torch computes (fp32), a block is a whole weight, since
a product's last bits depend on the shape that it is computed in. Called by `folder`; decides nothing about what goes where.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steps.errors import ModelError
from steps.fork_pool import fork_pool, killed_in_words
from steps.merge.arithmetic import Arithmetic, Bytes, Floats, LoadedLowRank, aligned, narrow, share_of, to_fp32, widen
from steps.merge.delta import LowRank
from steps.protocol.safetensors_header import ITEM_BYTES, StoredTensor

BLOCK_ELEMENTS = 65_536
"""Two fp32 buffers and one of bytes, 640 KiB together: they stay in a core's second-level cache. Twice as much is slower."""
TASK_ELEMENTS = 16_777_216
"""Largest piece that one process takes: small enough to share the work evenly, large enough to load its matrices once."""
COPY_BYTES = 33_554_432
MATRICES_KEPT = 8
"""Of the adapter, per process."""
CANNOT_COPY_IN_KERNEL = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


@dataclass(frozen=True, slots=True)
class Task:
    """Rows [first, last) of one output tensor."""

    source: StoredTensor
    target: StoredTensor
    first: int
    last: int
    low_rank: LowRank | None = None

    @property
    def columns(self) -> int:
        """Elements per row; a vector is one row."""
        return self.target.shape[-1] if self.target.shape else 1

    @property
    def is_copy(self) -> bool:
        """Nothing changes but the place."""
        return self.low_rank is None and self.source.dtype == self.target.dtype


def tasks_for(
    source: StoredTensor, target: StoredTensor, low_rank: LowRank | None, *, exact_as_torch: bool
) -> list[Task]:
    """One output tensor's work in pieces; in one, where torch is to compute it."""
    columns = target.shape[-1] if target.shape else 1
    rows = target.bytes // ITEM_BYTES[target.dtype] // max(columns, 1)
    step = max(1, rows if exact_as_torch and low_rank else TASK_ELEMENTS // max(columns, 1))
    return [Task(source, target, first, min(first + step, rows), low_rank) for first in range(0, rows, step)]


def run(
    tasks: Sequence[Task],
    adapter: Mapping[str, StoredTensor],
    *,
    processes: int,
    exact_as_torch: bool,
    done: Callable[[int], None] | None = None,
) -> None:
    """Work off all tasks; `done` gets the bytes written so far, at least twice a second.

    Raises:
        ModelError: a base file ended early, or a merged value does not fit fp16.
        CheckpointError: the adapter holds NaN or infinite values.
        StorageError: a process was killed.
        OSError: reading or writing failed.
    """
    written = 0
    worker = Worker(adapter, exact_as_torch=exact_as_torch)
    for count in map(worker.perform, tasks) if processes == 1 else _in_processes(tasks, worker, processes):
        written += count
        if done:
            done(written)


def _in_processes(tasks: Sequence[Task], worker: Worker, processes: int) -> Iterator[int]:
    """Bytes written since the last look. Threads would do less: between two calls of numpy each needs the interpreter's lock."""
    with killed_in_words("merges"), fork_pool(processes, _begin, worker) as pool:
        pending = {pool.submit(_perform, task) for task in tasks}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                yield sum(future.result() for future in finished)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: Worker | None = None
"""Of a forked process; None in the parent."""


def _begin(worker: Worker) -> None:
    global _worker
    _worker = worker


def _perform(task: Task) -> int:
    if _worker is None:
        raise RuntimeError("called outside a forked process")
    return _worker.perform(task)


class Worker:
    """Performs tasks one after the other, in memory that it uses again and again."""

    def __init__(self, adapter: Mapping[str, StoredTensor], *, exact_as_torch: bool) -> None:
        self._adapter = adapter
        self._exact_as_torch = exact_as_torch
        self._arithmetic = Arithmetic(exact_as_torch=exact_as_torch)
        self._buffers = Buffers(BLOCK_ELEMENTS)
        self._kept: dict[str, Floats] = {}

    def _read(self, name: str) -> Floats:
        """A matrix of the adapter; the last few are kept, since all experts of a layer share them."""
        if name not in self._kept:
            while len(self._kept) >= MATRICES_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = _read_whole(self._adapter[name])
        return self._kept[name]

    def perform(self, task: Task) -> int:
        """Write a task's rows; the bytes written."""
        if self._exact_as_torch and task.low_rank:
            self._buffers.fit((task.last - task.first) * task.columns)
        with ExitStack() as stack:
            source = stack.enter_context(task.source.file.open("rb", buffering=0)).fileno()
            target = stack.enter_context(task.target.file.open("r+b", buffering=0)).fileno()
            if task.is_copy:
                _copy(task, source, target)
            else:
                low_rank = _load(task.low_rank, self._read, task.target.name) if task.low_rank else None
                _merge(task, source, target, low_rank, self._arithmetic, self._buffers)
        return (task.last - task.first) * task.columns * ITEM_BYTES[task.target.dtype]


class Buffers:
    """One process's memory, reused for every block."""

    def __init__(self, elements: int) -> None:
        self._reserve(elements)

    def _reserve(self, elements: int) -> None:
        self.elements = elements
        self.raw = aligned(elements * 4)
        self.wide = aligned(elements * 4).view(np.uint32)
        self.sums = aligned(elements * 4).view(np.float32)

    def fit(self, elements: int) -> None:
        """Grow for a row, or a whole weight, that is longer than a block."""
        if elements > self.elements:
            self._reserve(elements)


def _copy(task: Task, source: int, target: int) -> None:
    item = ITEM_BYTES[task.source.dtype] * task.columns
    offset, left = task.first * item, (task.last - task.first) * item
    while left:
        copied = _copy_some(
            source, target, min(left, COPY_BYTES), task.source.start + offset, task.target.start + offset
        )
        if not copied:
            raise _ended_early(task.source)
        offset, left = offset + copied, left - copied


def _copy_some(source: int, target: int, count: int, start: int, place: int) -> int:
    """Bytes copied, at least one unless the source ended; in the kernel where the file systems allow it."""
    try:
        return os.copy_file_range(source, target, count, start, place)
    except OSError as error:
        if error.errno not in CANNOT_COPY_IN_KERNEL:
            raise
    return os.pwrite(target, os.pread(source, min(count, 1 << 20), start), place)


def _read_whole(stored: StoredTensor) -> Floats:
    with stored.file.open("rb") as file:
        file.seek(stored.start)
        return to_fp32(file.read(stored.bytes), stored.dtype, stored.shape)


def _load(low_rank: LowRank, read: Callable[[str], Floats], name: str) -> LoadedLowRank:
    up, down = read(low_rank.up), read(low_rank.down)
    if low_rank.share:
        up, down = share_of(low_rank.share, up, down)
    return LoadedLowRank(
        up,
        down,
        low_rank.scale,
        transposed=low_rank.transposed,
        magnitude=read(low_rank.magnitude).reshape(-1) if low_rank.magnitude else None,
        name=name,
    )


def _merge(
    task: Task, source: int, target: int, low_rank: LoadedLowRank | None, arithmetic: Arithmetic, buffers: Buffers
) -> None:
    columns, dtype_in, dtype_out = task.columns, task.source.dtype, task.target.dtype
    buffers.fit(columns)
    step = max(1, buffers.elements // columns)
    for first in range(task.first, task.last, step):
        rows = min(step, task.last - first)
        count, offset = rows * columns, first * columns
        raw_in = buffers.raw[: count * ITEM_BYTES[dtype_in]]
        raw_out = buffers.raw[: count * ITEM_BYTES[dtype_out]]
        _read(source, raw_in, task.source, offset * ITEM_BYTES[dtype_in])
        wide, sums = buffers.wide[:count], buffers.sums[:count]
        values = widen(raw_in, dtype_in, wide)
        if low_rank:
            low_rank.apply(values.reshape(rows, columns), first, sums.reshape(rows, columns), arithmetic)
            values, scratch = sums, wide
        else:
            scratch = sums.view(np.uint32)
        try:
            narrow(values, dtype_out, raw_out, scratch)
        except FloatingPointError as error:
            raise ModelError(
                f"{task.target.name}: a merged value is too large for float16 (more than 65504); merge in bfloat16"
            ) from error
        _write(target, raw_out, task.target.start + offset * ITEM_BYTES[dtype_out])


def _read(descriptor: int, into: Bytes, tensor: StoredTensor, offset: int) -> None:
    view, at = into.data, tensor.start + offset
    while view:
        count = os.preadv(descriptor, [view], at)
        if not count:
            raise _ended_early(tensor)
        view, at = view[count:], at + count


def _write(descriptor: int, data: Bytes, at: int) -> None:
    view = data.data
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count


def _ended_early(tensor: StoredTensor) -> ModelError:
    return ModelError(f"{tensor.file} ended inside {tensor.name}: the file changed while it was read; fetch it again")


def create(file: Path, header: bytes, size: int) -> None:
    """An output file of its final size, header first.

    Raises:
        OSError: no room, no permission, or the file is there already.
    """
    with file.open("xb") as stream:
        stream.write(header)
        stream.truncate(size)
