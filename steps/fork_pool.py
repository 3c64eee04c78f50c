"""A pool of processes forked from this one: they hold its memory, leave Ctrl-C to it, and never outlive it.

Used where threads would wait for each other, by `prepare.workers` and `merge.stream`. Spawned processes would import the flow's
file again, and much else.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from threadpoolctl import threadpool_limits

from steps.errors import StorageError

PR_SET_PDEATHSIG = 1


def fork_pool(count: int, start: Callable[..., None], *given: Any) -> ProcessPoolExecutor:
    """A pool of `count` processes, each of which begins with `start(*given)`; nothing of `given` is pickled."""
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(os.getpid(), start, given))


@contextlib.contextmanager
def killed_in_words(what: str) -> Iterator[None]:
    """A process that was killed as a StorageError; `what` it does, as in "merges".

    Raises:
        StorageError: with what to do.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise StorageError(
            f"a process that {what} was killed, most likely for lack of memory: free some, or use fewer cores (taskset -c 0 …)"
        ) from error


def _begin(parent: int, start: Callable[..., None], given: tuple[Any, ...]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threadpool_limits(
        1
    )  # each process is a core's; linear algebra with threads of its own would share it with all the others
    start(*given)
