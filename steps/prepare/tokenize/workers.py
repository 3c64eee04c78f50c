"""Chunks of rows made into samples by several processes, in order, with few chunks in flight.

Called by `collect`. Threads would not do: most of the work holds the interpreter's lock. Small data sets never start a
process, since starting them takes longer than the work.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice

from steps import machine
from steps.fork_pool import fork_pool, killed_in_words
from steps.prepare.tokenize.samples import Chunk, Made, SampleMaker

ALONE_CHUNKS = 1
"""Chunks made in this process before others are started; what it learned of the words, they inherit."""
MOST_PROCESSES = 8
"""Beyond these, reading and storing in this process is what takes the time."""


def make_samples(
    chunks: Iterator[Chunk], maker: SampleMaker, *, processes: int | None = None
) -> Iterator[tuple[int, Made]]:
    """(`done` of the chunk's last row, what became of it) for each chunk, in order.

    Args:
        processes: how many to use; None: as many as there are cores for this one.

    Raises:
        StorageError: a process was killed, most likely for lack of memory.
    """
    for chunk in islice(chunks, ALONE_CHUNKS):
        yield chunk.rows[-1].done, maker.make(chunk)
    count = min(MOST_PROCESSES, processes or machine.cores())
    first = next(chunks, None)
    if first is None:
        return
    if count == 1:
        for chunk in _with_first(first, chunks):
            yield chunk.rows[-1].done, maker.make(chunk)
        return
    with killed_in_words("tokenises rows"):
        yield from _in_processes(_with_first(first, chunks), maker, count)


def _in_processes(chunks: Iterator[Chunk], maker: SampleMaker, count: int) -> Iterator[tuple[int, Made]]:
    waiting: deque[tuple[int, Future[Made]]] = deque()
    with fork_pool(count, _start, maker) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk.rows[-1].done, pool.submit(_make, chunk)))
                if len(waiting) > 2 * count:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _with_first(first: Chunk, rest: Iterator[Chunk]) -> Iterator[Chunk]:
    yield first
    yield from rest


_maker: SampleMaker | None = None
"""Of a worker process; None in the parent."""


def _start(maker: SampleMaker) -> None:
    global _maker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked
    gc.disable()  # rows and samples hold no cycles, and looking for some takes a fifteenth of the time
    _maker = maker


def _make(chunk: Chunk) -> Made:
    if _maker is None:
        raise RuntimeError("called outside a worker process")
    return _maker.make(chunk)
