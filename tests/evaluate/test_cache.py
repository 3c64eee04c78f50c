"""The cache that grows in place holds what transformers' own does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from steps.evaluate.quick import filled


@given(st.integers(1, 40).flatmap(lambda rows: st.sets(st.integers(0, rows - 1))))
def test_rows_that_are_kept_stay_where_they_are_or_fill_a_hole(kept: set[int]) -> None:
    order = filled(sorted(kept))
    assert sorted(order) == sorted(kept)
    assert all(row == place or row >= len(order) for place, row in enumerate(order))


@settings(max_examples=25, deadline=None)
@given(
    prefix=st.integers(0, 5),
    changes=st.lists(st.one_of(st.integers(1, 70), st.sets(st.integers(0, 4), min_size=1)), max_size=8),
)
def test_a_growing_cache_holds_what_transformers_holds(prefix: int, changes: list[int | set[int]]) -> None:
    import torch
    from transformers.cache_utils import DynamicLayer

    from steps.evaluate.cache import GrowingLayer

    torch.manual_seed(0)
    ours, theirs, rows = GrowingLayer(), DynamicLayer(), 5
    if prefix:
        new = torch.randn(1, 2, prefix, 4), torch.randn(1, 2, prefix, 6)
        for layer in (ours, theirs):
            layer.update(*new)
    for layer in (ours, theirs):
        layer.batch_repeat_interleave(rows)
    for change in (3, *changes):
        if isinstance(change, int):
            new = torch.randn(rows, 2, change, 4), torch.randn(rows, 2, change, 6)
            found, expected = ours.update(*new), theirs.update(*new)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
            assert ours.get_seq_length() == theirs.get_seq_length()
        elif kept := sorted(row for row in change if row < rows):
            order = torch.tensor(filled(kept))
            holes = (order != torch.arange(len(kept))).nonzero()[:, 0]
            ours.keep(len(kept), holes, order[holes])
            theirs.batch_select_indices(order)
            rows = len(kept)
    assert torch.equal(ours.keys, theirs.keys)


def test_a_step_does_not_copy_what_is_there() -> None:
    import torch

    from steps.evaluate.cache import ROOM, GrowingLayer

    layer, new = GrowingLayer(), torch.ones(2, 1, 1, 4)
    places = {layer.update(new, new)[0].data_ptr() for _ in range(ROOM)}
    assert len(places) == 1
    layer.keep(1, torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))
    assert layer.keys.data_ptr() in places
    assert layer.keys.shape == (1, 1, ROOM, 4)
