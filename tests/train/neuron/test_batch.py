"""Batches of one shape, and the checks of copies: what the neuron backend does without its libraries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.errors import LoraFlowError
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import classify_exception
from steps.protocol.prepared import IGNORED_LABEL, PreparedRow
from steps.train.loop.rows import collate, without_first_targets
from steps.train.neuron.batch import device_seed, fix_shape
from steps.train.neuron.replicas import Copies, ReplicaError, ScheduleError, require_equal, require_rate
from steps.train.neuron.state import Place

LENGTH = 24


def make_row(lengths: list[int]) -> PreparedRow:
    ids = np.arange(5, 5 + sum(lengths), dtype=np.int32)
    labels = np.where(ids % 3 != 0, ids, IGNORED_LABEL).astype(np.int32)
    return PreparedRow(ids, labels, np.array(lengths, dtype=np.int32))


rows_of_samples = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3)


@given(rows_of_samples, st.integers(0, 2))
def test_every_label_stays_at_its_token_and_padding_has_none(lengths: list[list[int]], missing: int) -> None:
    rows = [make_row(item) for item in lengths]
    fixed = fix_shape(collate(rows, packed=True), rows=len(rows) + missing, length=LENGTH)
    assert fixed.input_ids.shape == fixed.labels.shape == fixed.position_ids.shape == (len(rows) + missing, LENGTH)
    for number, row in enumerate(rows):
        end = len(row.input_ids)
        np.testing.assert_array_equal(fixed.input_ids[number, :end], row.input_ids)
        np.testing.assert_array_equal(fixed.labels[number, :end], without_first_targets(row))
        assert (fixed.labels[number, end:] == IGNORED_LABEL).all()
    assert (fixed.labels[len(rows) :] == IGNORED_LABEL).all()


def test_positions_start_again_and_padding_is_a_sample_of_its_own() -> None:
    fixed = fix_shape(collate([make_row([2, 3])], packed=True), rows=2, length=7)
    assert fixed.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6]]
    assert fixed.samples.tolist() == [[0, 0, 1, 1, 1, 2, 2], [0] * 7]


@given(st.integers(0, 2**31), st.integers(0, 10_000), st.integers(0, 4000), st.integers(0, 63))
def test_seeds_differ_by_step_place_and_sequence_part(seed: int, step: int, micro: int, part: int) -> None:
    mine = device_seed(seed, step, micro, sequence_part=part)
    assert 0 <= mine < 2**56
    assert mine == device_seed(seed, step, micro, sequence_part=part)
    others = [(step + 1, micro, part), (step, micro + 1, part), (step, micro, part + 1)]
    assert mine not in {device_seed(seed, a, b, sequence_part=c) for a, b, c in others}
    assert mine != device_seed(seed, step, micro, sequence_part=part, stage=1)


def make_world() -> list[Copies]:
    return [
        Copies(dp, tp, 0, replicated={"a": "same"}, sharded={"b": f"part {tp}"}) for dp in range(2) for tp in range(2)
    ]


def test_equal_copies_pass() -> None:
    require_equal(make_world(), step=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replicated": {"a": "other"}}, "a of dp 0 tp 0 differs from dp 1 tp 1"),
        ({"sharded": {"b": "other"}}, "b of dp 0 tp 1 differs from dp 1 tp 1"),
        ({"replicated": {}}, "a of dp 0 tp 0 differs from dp 1 tp 1"),
    ],
    ids=["replicated over all", "sharded over tensor-parallel only", "missing"],
)
def test_drifted_copies_are_named(change: dict[str, dict[str, str]], words: str) -> None:
    world = make_world()
    with pytest.raises(ReplicaError, match=words):
        require_equal([*world[:3], replace(world[3], **change)], step=3)


def qkv_world(kv_heads: int | None) -> list[Copies]:
    """Four tensor-parallel ranks of two KV heads: ranks 0 and 2 hold the first."""
    name = "layers.0.self_attn.qkv_proj"
    dims = {f"{name}.lora_A.weight": None, **{f"{name}.lora_B.weight_{letter}": 0 for letter in "qkv"}}
    return [
        Copies.of(
            Place(0, tp, 1),
            {
                key: "A" if dim is None else f"q{tp}" if key[-1] == "q" else f"head {tp % 2}"
                for key, dim in dims.items()
            },
            dims,
            kv_heads,
        )
        for tp in range(4)
    ]


def test_copies_of_k_and_v_are_compared_over_the_ranks_that_hold_the_same_head() -> None:
    world = qkv_world(2)
    require_equal(world, step=3)
    changed = replace(world[2], kv=world[2].kv | {"layers.0.self_attn.qkv_proj.lora_B.weight_v": "other"})
    with pytest.raises(
        ReplicaError, match=r"qkv_proj.lora_B.weight_v of dp 0 tp 0 differs from dp 0 tp 2\. Nothing is saved"
    ):
        require_equal([*world[:2], changed, world[3]], step=3)


def test_each_rank_has_its_own_k_and_v_where_heads_suffice() -> None:
    assert all(not copies.kv and len(copies.sharded) == 3 and len(copies.replicated) == 1 for copies in qkv_world(None))
    assert all(len(copies.kv) == 2 and len(copies.sharded) == 1 for copies in qkv_world(2))


def test_copies_that_differ_are_tried_again_and_a_lost_schedule_is_not() -> None:
    classes = [classify_exception(error) for error in (ReplicaError("drifted"), ScheduleError("rate 0"))]
    assert classes == [FailureClass.UNKNOWN, FailureClass.USER]
    assert [kind.meaning.is_permanent for kind in classes] == [False, True]


def test_a_rate_that_is_not_the_schedules_is_refused() -> None:
    require_rate([0.1, 0.1], [0.1, 0.1], step=1)
    with pytest.raises(LoraFlowError, match=r"at step 2 the optimizer would use learning rates \[0.0\]"):
        require_rate([0.0], [0.1], step=2)
