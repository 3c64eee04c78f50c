"""Processes of one machine load the model in lots, so that its memory never holds a copy for each of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from steps.train.loop.device import loaders
from steps.train.loop.ranks import PeerLostError, Ranks, peers

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Meeting(Ranks):
    """Ranks that are threads."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def wait(self) -> None:
        self.barrier.wait(timeout=20)


@pytest.mark.parametrize(
    ("at_once", "expected"), [(1, [[0], [1], [2], [3]]), (3, [[0, 1, 2], [3]]), (4, [[0, 1, 2, 3]])]
)
def test_each_lot_begins_when_the_one_before_is_done(at_once: int, expected: list[list[int]]) -> None:
    barrier, done = threading.Barrier(4), []

    def load(rank: int) -> None:
        with Meeting(rank, 4, rank, 4, barrier=barrier).in_turn(at_once):
            done.append(rank)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(4)))
    lots, rest = [], done
    for lot in expected:
        lots.append(sorted(rest[: len(lot)]))
        rest = rest[len(lot) :]
    assert lots == expected


@pytest.mark.parametrize(
    ("needed_gib", "free_gib", "expected"),
    [(16, 2000, 62), (16, 40, 1), (16, 10, 1), (2.5, 2000, 64), (16, None, 64), (0, 100, 64)],
)
def test_half_of_the_free_memory_may_be_used(needed_gib: float, free_gib: float | None, expected: int) -> None:
    free = None if free_gib is None else int(free_gib * GIB)
    assert loaders(int(needed_gib * GIB), 64, free_bytes=free) == expected


def test_an_error_of_earlier_work_on_the_device_is_not_taken_for_a_lost_peer() -> None:
    with pytest.raises(RuntimeError, match="OOM"), peers():
        raise RuntimeError("NRT allocation failed for size 1024 (OOM)")
    with pytest.raises(PeerLostError), peers():
        raise RuntimeError("Connection closed by peer")
