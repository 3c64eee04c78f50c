from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from steps.errors import DataError
from steps.prepare import split
from steps.prepare.chat.conversations import Turn
from steps.prepare.pack import count_steps, one_each, pack, run_order
from steps.prepare.split import compare, content_key, held_out, position

texts = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=40)


def divide(answers: list[str], seed: int, fraction: float) -> tuple[set[str], set[str]]:
    keys = [content_key((Turn("user", "q"), Turn("assistant", answer))) for answer in answers]
    first, _ = compare(np.frombuffer(b"".join(keys), dtype="V16"))
    distinct = [answer for answer, is_first in zip(answers, first, strict=True) if is_first]
    positions = np.array([position(keys[answers.index(answer)], seed, fraction) for answer in distinct])
    chosen = held_out(positions, fraction)
    return (
        {answer for answer, out in zip(distinct, chosen, strict=True) if not out},
        {answer for answer, out in zip(distinct, chosen, strict=True) if out},
    )


@given(texts.filter(lambda found: len(set(found)) > 1), st.integers(0, 2**31 - 1), st.randoms())
def test_the_split_depends_on_content_and_seed_and_no_sample_is_on_both_sides(
    answers: list[str], seed: int, random: object
) -> None:
    train, validation = divide(answers, seed, 0.3)
    shuffled = [*answers, answers[0]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert divide(shuffled, seed, 0.3) == (train, validation)
    assert train
    assert validation
    assert not train & validation
    assert train | validation == set(answers)


def test_new_rows_move_no_old_one_to_the_other_side() -> None:
    old = [f"answer {n}" for n in range(300)]
    train, validation = divide(old, 7, 0.1)
    more_train, more_validation = divide([*old, *(f"new {n}" for n in range(300))], 7, 0.1)
    assert train <= more_train
    assert validation <= more_validation
    assert 15 <= len(validation) <= 50


def test_a_source_that_names_the_side_is_obeyed() -> None:
    keys = [bytes([n]) * 16 for n in range(50)]
    assert all(position(key, 1, 0.1, "validation") < 0.1 for key in keys)
    assert all(0.1 <= position(key, 1, 0.1, "train") < 1 for key in keys)


def test_turns_that_read_alike_joined_have_different_keys() -> None:
    assert content_key((Turn("user", "ab"), Turn("assistant", "c"))) != content_key(
        (Turn("user", "a"), Turn("assistant", "bc"))
    )


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_distinct_samples_are_refused(count: int) -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        held_out(np.zeros(count), 0.1)


@given(st.lists(st.integers(1, 64), max_size=200))
@example([64] * 5)
@example([])
def test_packing_loses_cuts_and_repeats_nothing_and_no_row_is_too_long(lengths: list[int]) -> None:
    found = pack(np.array(lengths, dtype=np.int32), 64)
    assert sorted(found.members.tolist()) == list(range(len(lengths)))
    rows = [found.members[found.starts[row] : found.starts[row + 1]] for row in range(found.rows)]
    assert sum(len(row) for row in rows) == len(lengths)
    assert all(0 < sum(lengths[sample] for sample in row) <= 64 for row in rows)


@given(st.lists(st.integers(1, 64), max_size=200))
def test_no_two_packed_rows_would_fit_into_one(lengths: list[int]) -> None:
    found = pack(np.array(lengths, dtype=np.int32), 64)
    filled = sorted(sum(lengths[n] for n in found.members[begin:end]) for begin, end in pairwise(found.starts))
    assert len(filled) < 2 or filled[0] + filled[1] > 64


def test_alpaca_like_lengths_fill_rows_of_1024_to_99_percent() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.1, 0.7, 5000), 30, 1024).astype(np.int32)
    rows = pack(lengths, 1024).rows
    assert lengths.sum() / (rows * 1024) >= 0.99


def test_a_length_beyond_the_row_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"within 1\.\.64"):
        pack(np.array([65], dtype=np.int32), 64)


def test_without_packing_each_sample_is_a_row() -> None:
    assert one_each(3).starts.tolist() == [0, 1, 2, 3]


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 2**31 - 1))
def test_every_pass_of_the_order_holds_each_row_once(rows: int, positions: int, seed: int) -> None:
    order = run_order(rows, positions, seed)
    assert len(order) == positions
    for begin in range(0, positions, rows):
        part = order[begin : begin + rows].tolist()
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(rows))
    assert np.array_equal(run_order(rows, positions + rows, seed)[:positions], order)


def test_the_order_is_this_one_for_ever() -> None:
    assert run_order(8, 16, 42).tolist() == [4, 1, 3, 6, 0, 7, 2, 5, 1, 2, 5, 3, 6, 0, 4, 7]
    assert run_order(8, 16, 42).tolist() != run_order(8, 16, 43).tolist()


@pytest.mark.parametrize(
    ("max_steps", "epochs", "expected"), [(30, 1.0, 30), (0, 1.0, 3), (0, 0.1, 1), (0, 2.5, 7), (0, 3.0, 8)]
)
def test_steps_come_from_max_steps_or_from_epochs_rounded_up(max_steps: int, epochs: float, expected: int) -> None:
    assert count_steps(10, max_steps=max_steps, epochs=epochs, global_batch=4) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 5), min_size=1, max_size=30), block=st.integers(1, 7))
def test_keys_are_compared_alike_in_blocks_of_any_size_and_any_order(
    monkeypatch: pytest.MonkeyPatch, numbers: list[int], block: int
) -> None:
    monkeypatch.setattr(split, "BLOCK", block)
    keys = np.frombuffer(b"".join(number.to_bytes(16) for number in numbers), dtype="V16")
    is_first, fingerprint = compare(keys)
    assert is_first.tolist() == [number not in numbers[:index] for index, number in enumerate(numbers)]
    assert fingerprint == hashlib.sha256(b"".join(number.to_bytes(16) for number in sorted(numbers))).hexdigest()
    assert compare(keys[::-1].copy())[1] == fingerprint
