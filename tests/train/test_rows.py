"""Which rows a step takes, and how they are put side by side."""

from __future__ import annotations

import numpy as np
import pytest

from steps.errors import ConfigError
from steps.protocol.prepared import IGNORED_LABEL, PreparedRow
from steps.train.loop.rows import FixedShape, RowCounts, Slicing, collate, sample_numbers, seed_of


def row_of(*samples: list[int], without_loss: int = 1) -> PreparedRow:
    """A row of samples; the first `without_loss` tokens of each have no loss."""
    ids = np.array([token for sample in samples for token in sample], dtype=np.int32)
    labels = ids.copy()
    lengths = np.array([len(sample) for sample in samples], dtype=np.int32)
    for start in np.cumsum(lengths) - lengths:
        labels[start : start + without_loss] = IGNORED_LABEL
    return PreparedRow(ids, labels, lengths)


@pytest.mark.parametrize(
    ("world", "rank", "step", "expected"),
    [
        pytest.param(1, 0, 0, [[0, 1], [2, 3], [4, 5], [6, 7]], id="one rank takes all"),
        pytest.param(2, 0, 0, [[0, 1], [2, 3]], id="the first of two takes the first half"),
        pytest.param(2, 1, 0, [[4, 5], [6, 7]], id="the second takes the second half"),
        pytest.param(4, 2, 3, [[28, 29]], id="step 3 starts at 24"),
    ],
)
def test_rows_of_a_step(world: int, rank: int, step: int, expected: list[list[int]]) -> None:
    slicing = Slicing(global_batch=8, micro_batch=2, world=world, rank=rank)
    assert [list(slicing.positions(step, micro)) for micro in slicing.mine] == expected


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_ranks_cover_the_global_batch_once(world: int) -> None:
    found = [
        position
        for rank in range(world)
        for slicing in [Slicing(24, 2, world, rank)]
        for micro in slicing.mine
        for position in slicing.positions(5, micro)
    ]
    assert found == list(range(120, 144))


def test_a_global_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of processes × micro batch = 3 × 2 = 6, got 8"):
        Slicing(global_batch=8, micro_batch=2, world=3, rank=0)


def test_seeds_depend_on_run_step_and_place() -> None:
    seeds = {seed_of(seed, step, micro) for seed in range(3) for step in range(20) for micro in range(8)}
    assert len(seeds) == 3 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(42, 7, 3) == seed_of(42, 7, 3)


def test_rows_are_padded_to_the_longest_and_padding_has_no_target() -> None:
    batch = collate([row_of([5, 6, 7, 8]), row_of([1, 2])], packed=False)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [1, 2, 0, 0]]
    assert batch.position_ids is None
    assert batch.predict_at.tolist() == [0, 1, 2, 4]
    assert batch.targets.tolist() == [6, 7, 8, 2]


def test_positions_start_again_at_each_sample_and_at_the_padding() -> None:
    batch = collate([row_of([5, 6, 7], [8, 9]), row_of([1, 2])], packed=True)
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]


def test_the_first_token_of_a_sample_is_never_a_target() -> None:
    row = row_of([5, 6, 7], [8, 9], without_loss=0)
    batch = collate([row], packed=True)
    assert batch.targets.tolist() == [6, 7, 9]


class Listed(list[PreparedRow]):
    """Rows in memory."""

    def row(self, index: int) -> PreparedRow:
        return self[index]


def test_counts_of_a_global_batch_are_those_of_its_rows() -> None:
    counts = RowCounts(Listed([row_of([5, 6, 7], [8, 9]), row_of([1, 2, 3, 4], without_loss=3)]))
    assert counts.total(np.array([0, 1, 1])) == (13, 5)
    assert counts.total(np.array([1])) == (4, 1)


def test_packing_changes_no_count() -> None:
    first, second = [5, 6, 7], [8, 9, 10, 11]
    packed = RowCounts(Listed([row_of(first, second)])).total(np.array([0]))
    apart = RowCounts(Listed([row_of(first), row_of(second)])).total(np.array([0, 1]))
    assert packed == apart


def test_a_fixed_shape_holds_the_same_rows_and_targets() -> None:
    rows = [row_of([1, 2, 3]), row_of([4, 5, 6, 7], [8, 9])]
    plain = collate(rows, packed=True)
    fixed = collate(rows, packed=True, shape=FixedShape(rows=3, width=8, targets=10))
    assert fixed.position_ids is not None
    assert (fixed.input_ids.shape, fixed.position_ids.shape) == ((3, 8), (3, 8))
    assert (len(fixed.predict_at), len(fixed.targets)) == (10, 10)
    assert fixed.target_count == plain.target_count == len(plain.targets)
    assert fixed.targets[: plain.target_count].tolist() == plain.targets.tolist()
    assert sample_numbers(fixed.lengths[1], 8).tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert sample_numbers(fixed.lengths[2], 8).tolist() == [0] * 8
