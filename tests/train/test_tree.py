"""Sums along the fixed tree have the same bits on 1, 2, 4, … ranks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.train.loop.tree import TreeSum, odd_part, sum_over_ranks


def total_on(world: int, leaves: torch.Tensor) -> list[torch.Tensor]:
    """What each of `world` ranks ends with; the ranks are threads that swap through a list."""
    share = len(leaves) // world
    slots: list[torch.Tensor] = [torch.empty(0)] * world
    barrier = threading.Barrier(world)

    def work(rank: int) -> torch.Tensor:
        def exchange(partner: int, mine: torch.Tensor) -> torch.Tensor:
            slots[rank] = mine.clone()
            barrier.wait()
            theirs = slots[partner]
            barrier.wait()
            return theirs

        tree = TreeSum(lambda: torch.zeros(leaves.shape[1]), leaves=share)
        for leaf in leaves[rank * share : (rank + 1) * share]:
            tree.leaf().add_(leaf)
            tree.leaf_done()
        root = tree.root()
        sum_over_ranks(
            root, rank=rank, world=world, exchange=exchange, add_up=lambda tensor: pytest.fail("not a power")
        )
        return root

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, range(world)))


@settings(deadline=None)
@given(odd=st.sampled_from([1, 3, 5, 7]), doublings=st.integers(0, 4), seed=st.integers(0, 2**31))
def test_any_power_of_two_of_ranks_ends_with_the_same_bits(odd: int, doublings: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-20, 20, (odd << doublings, 5), generator=generator)
    leaves = torch.randn(odd << doublings, 5, generator=generator) * 2.0**exponents
    expected = total_on(1, leaves)[0]
    for world in (1 << power for power in range(doublings + 1)):
        for found in total_on(world, leaves):
            assert torch.equal(found, expected)
    torch.testing.assert_close(expected.double(), leaves.double().sum(0), rtol=1e-4, atol=1e-4 * leaves.abs().max())


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_that_cannot_swap_add_up_along_the_same_tree(world: int) -> None:
    leaves = torch.randn(world, 7, generator=torch.Generator().manual_seed(world)) * 1e3 ** torch.arange(world)[:, None]
    mine = leaves[0].clone()
    sum_over_ranks(
        mine, rank=0, world=world, exchange=lambda *_: pytest.fail("no pairs"), add_up=pytest.fail,
        all_gather=lambda piece: leaves,
    )  # fmt: skip
    assert torch.equal(mine, total_on(world, leaves)[0])


def test_other_worlds_take_the_plain_sum() -> None:
    called = []
    sum_over_ranks(torch.ones(1), rank=0, world=3, exchange=lambda *_: pytest.fail("no pairs"), add_up=called.append)
    assert len(called) == 1


def test_buffers_are_used_again_and_few() -> None:
    made = []

    def new_buffer() -> torch.Tensor:
        made.append(1)
        return torch.zeros(1)

    tree = TreeSum(new_buffer, leaves=32)
    for _ in range(3):
        for _ in range(32):
            tree.leaf().add_(1)
            tree.leaf_done()
        assert tree.root().item() == 32
    assert len(made) <= 6


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 1), (6, 3), (12, 3), (7, 7), (40, 5)])
def test_the_odd_part(count: int, expected: int) -> None:
    assert odd_part(count) == expected
