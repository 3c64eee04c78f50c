"""The table of failure classes: whole, without a contradiction, and with the numbers that people and older runs know."""

from __future__ import annotations

from collections import Counter

from steps.protocol.failure_class import CLASS_OF_EXCEPTION, CLASS_OF_EXIT, MEANINGS, FailureClass


def test_every_class_has_a_row_with_advice() -> None:
    assert set(MEANINGS) == set(FailureClass)
    assert all(row.advice for row in MEANINGS.values())


def test_the_exit_codes_are_those_of_every_version() -> None:
    assert {code: kind.value for code, kind in CLASS_OF_EXIT.items()} == {
        64: "user",
        65: "config",
        66: "storage",
        70: "user",
        71: "out_of_memory",
        75: "unknown",
        76: "accelerator",
        77: "network",
        78: "hang",
        79: "node",
        143: "preempted",
    }


def test_exit_codes_and_classes_agree() -> None:
    for kind in set(FailureClass) - {FailureClass.IMAGE}:
        assert CLASS_OF_EXIT[kind.exit_code] is kind
    assert FailureClass.IMAGE.exit_code == FailureClass.USER.exit_code  # no worker runs that could tell
    assert all(0 < code < 128 or code == 143 for code in CLASS_OF_EXIT)


def test_no_exit_code_and_no_exception_has_two_classes() -> None:
    codes = Counter(code for row in MEANINGS.values() for code in row.exit_codes)
    names = Counter(name for row in MEANINGS.values() for name in row.exceptions)
    assert {*codes.values(), *names.values()} == {1}
    assert codes.keys() == CLASS_OF_EXIT.keys()
    assert names.keys() == CLASS_OF_EXCEPTION.keys()


def test_broken_hardware_comes_before_what_it_causes() -> None:
    symptoms = [kind for kind, row in MEANINGS.items() if row.is_symptom]
    assert min(kind.precedence for kind in symptoms) > FailureClass.ACCELERATOR.precedence == 0


def test_what_is_permanent_blames_no_node_and_hides_nothing() -> None:
    for row in MEANINGS.values():
        assert not (row.is_permanent and (row.blames_node or row.hides_hardware or row.is_symptom))
        assert row.blames_node or not row.excludes_node
