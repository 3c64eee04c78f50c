from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from steps.errors import DataError
from steps.prepare import split
from steps.prepare.chat.conversations import of_turns
from steps.prepare.pack import count_steps, one_each, pack, run_order
from steps.prepare.share import FEWEST, MOST, Share, enough
from steps.prepare.split import Keys, Portion, compare, divide, held_out, keys_of, position

texts = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=40)


def sides(asked: list[tuple[str, str]], seed: int, fraction: float) -> tuple[set[str], set[str]]:
    """The answers of each side, of pairs of question and answer."""
    keys = [keys_of(of_turns(("user", question), ("assistant", answer))) for question, answer in asked]
    contents = np.frombuffer(b"".join(content for content, _ in keys), dtype="V16")
    prompts = np.frombuffer(b"".join(prompt for _, prompt in keys), dtype=np.uint64)
    share = Share(fraction)
    positions = np.array([position(prompt, seed, share.between) for _, prompt in keys])
    found = divide(Keys(contents, prompts, positions), [Portion(0, len(positions), share)])
    return {asked[index][1] for index in found.train}, {asked[index][1] for index in found.validation}


def with_questions(answers: list[str]) -> list[tuple[str, str]]:
    return [(f"q {answer}", answer) for answer in answers]


@given(texts.filter(lambda found: len(set(found)) > 1), st.integers(0, 2**31 - 1), st.randoms())
def test_the_split_depends_on_content_and_seed_and_no_sample_is_on_both_sides(
    answers: list[str], seed: int, random: object
) -> None:
    train, validation = sides(with_questions(answers), seed, 0.3)
    shuffled = [*answers, answers[0]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sides(with_questions(shuffled), seed, 0.3) == (train, validation)
    assert train
    assert validation
    assert not train & validation
    assert train | validation == set(answers)


def test_new_rows_move_no_old_one_to_the_other_side() -> None:
    old = [f"answer {n}" for n in range(300)]
    train, validation = sides(with_questions(old), 7, 0.1)
    more_train, more_validation = sides(with_questions([*old, *(f"new {n}" for n in range(300))]), 7, 0.1)
    assert train <= more_train
    assert validation <= more_validation
    assert 15 <= len(validation) <= 50


def test_a_source_that_names_the_side_is_obeyed() -> None:
    keys = [bytes([n]) * 16 for n in range(50)]
    assert all(position(key, 1, 0.1, "validation") < 0.1 for key in keys)
    assert all(0.1 <= position(key, 1, 0.1, "train") < 1 for key in keys)


def test_turns_that_read_alike_joined_have_different_keys() -> None:
    assert keys_of(of_turns(("user", "ab"), ("assistant", "c"))) != keys_of(
        of_turns(("user", "a"), ("assistant", "bc"))
    )


@pytest.mark.parametrize(
    ("samples", "held"),
    [(2, 1), (9, 1), (20, 4), (100, 20), (640, 128), (1280, 128), (2000, 200), (5120, 512), (52_002, 512)],
)
def test_without_a_share_as_many_are_held_out_as_the_interval_needs(samples: int, held: int) -> None:
    assert enough(samples) == held
    train, validation = sides(with_questions([f"{number}" for number in range(samples)]), 3, 0)
    assert (len(train), len(validation)) == (samples - held, held)


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_what_can_be_held_out_falls_as_samples_grow_and_is_never_too_much(one: int, other: int) -> None:
    share, (fewer, more) = Share(0), sorted((one, other))
    assert share.below(fewer) >= share.below(more)  # texts of samples that are looked at early are known at the end
    assert enough(more) <= min(MOST, max(1, FEWEST, more / 10), max(1, more / 5))
    assert enough(more) <= max(1, share.below(more) * more)


def test_a_source_with_sides_is_obeyed_where_no_share_is_asked_for() -> None:
    share = Share(0, has_sides=True)
    contents = np.frombuffer(b"".join(number.to_bytes(16) for number in range(400)), dtype="V16")
    prompts = np.arange(400, dtype=np.uint64)
    named = ["validation"] * 300 + ["train"] * 100
    positions = np.array([position(bytes([n % 256, n // 256]), 1, share.between, side) for n, side in enumerate(named)])  # type: ignore[arg-type]
    found = divide(Keys(contents, prompts, positions), [Portion(0, len(positions), share)])
    assert (len(found.validation), len(found.train)) == (300, 100)


@given(st.integers(2, 40), st.integers(0, 999), st.floats(0.01, 0.99))
def test_a_question_with_several_answers_is_on_one_side(questions: int, seed: int, fraction: float) -> None:
    asked = [(f"q{number % questions}", f"{number % questions} {number}") for number in range(3 * questions)]
    train, validation = ({answer.split()[0] for answer in side} for side in sides(asked, seed, fraction))
    assert train
    assert validation
    assert not train & validation


def test_what_a_training_file_shares_with_a_test_file_is_left_out_of_training() -> None:
    keys = [keys_of(of_turns(("user", question), ("assistant", "a"))) for question in ("one", "two", "one", "three")]
    named = ("train", "train", "validation", "validation")
    positions = [position(prompt, 1, 0.1, side) for (_, prompt), side in zip(keys, named, strict=True)]  # type: ignore[arg-type]
    contents = np.frombuffer(b"".join(bytes([n]) * 16 for n in range(4)), dtype="V16")
    prompts = np.frombuffer(b"".join(prompt for _, prompt in keys), dtype=np.uint64)
    found = divide(Keys(contents, prompts, np.array(positions)), [Portion(0, len(positions), Share(0.1))])
    assert (found.train.tolist(), sorted(found.validation.tolist()), found.leaked) == ([1], [2, 3], 1)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_distinct_samples_are_refused(count: int) -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        held_out(np.zeros(count), np.zeros(count, dtype=np.uint64), 0.1)


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


def test_training_files_whose_questions_are_all_held_out_are_refused() -> None:
    prompts = np.array([1, 2, 1, 2], dtype=np.uint64)
    contents = np.frombuffer(b"".join(bytes([n]) * 16 for n in range(4)), dtype="V16")
    with pytest.raises(DataError, match="every question of the training files is held out too"):
        divide(Keys(contents, prompts, np.array([0.5, 0.6, 0.01, 0.02])), [Portion(0, 4, Share(0.1))])
