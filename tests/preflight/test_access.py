"""Which verb is missing, for whom, and what follows from it."""

from __future__ import annotations

import pytest

from steps.preflight import survey
from tests.preflight import preflight_answers as good
from tests.preflight.preflight_answers import ADMIN, DENIED, FORBIDDEN, QUEUED, SILENT, judge, not_ok

RIGHTS: list[tuple[str, str, str]] = [
    *((f"{verb} pytorchjobs", "error", "") for verb in ("create", "get", "list", "delete")),
    *((f"{verb} pods", "error", "") for verb in ("get", "list")),
    ("get pods/log", "error", ""),
    ("watch pytorchjobs", "warning", "polled"),
    ("watch pods", "warning", "polled"),
    ("list events", "warning", "why pods do not start"),
    ("get nodes", "warning", "dead node"),
    ("list workloads", "warning", "waits for in the queue"),
]


@pytest.mark.parametrize(("right", "severity", "words"), RIGHTS, ids=[item[0] for item in RIGHTS])
def test_a_missing_right_is_named_with_its_rule(right: str, severity: str, words: str) -> None:
    (found,) = not_ok(judge(good.target(**QUEUED), {f"own {right}": DENIED}))
    assert (found.check, found.severity) == ("permissions", severity)
    assert f"{good.ACCOUNT} may not {right}" in found.message
    assert words in found.message
    verb, _, resource = right.partition(" ")
    assert f"resources: [{resource}], verbs: [{verb}]" in found.fix


def test_all_missing_verbs_of_a_kind_are_one_finding() -> None:
    spoiled = {f"own {verb} pytorchjobs": DENIED for verb in ("create", "delete")}
    (found,) = not_ok(judge(good.target(), spoiled))
    assert "may not create, delete pytorchjobs in namespace hyperpod-ns-research" in found.message


def test_a_review_without_an_answer_is_a_warning() -> None:
    (found,) = not_ok(judge(good.target(), {"own create pytorchjobs": SILENT}))
    assert (found.severity, "could not be asked" in found.message) == ("warning", True)


def test_from_a_laptop_the_rights_that_count_are_the_steps_account_s() -> None:
    aim = good.target(is_inside=False)
    spoiled = {**ADMIN, "own create pytorchjobs": DENIED, "their get persistentvolumeclaims": DENIED}
    (found,) = not_ok(judge(aim, spoiled))
    assert found.message.startswith(f"{good.ACCOUNT} may not get persistentvolumeclaims")


def test_who_may_not_ask_about_the_steps_account_gets_only_warnings_about_the_own_one() -> None:
    aim = good.target(is_inside=False)
    known = survey.questions(aim, survey.sample(aim))
    spoiled = {key: FORBIDDEN for key in known if key.startswith("their ")}
    (found,) = not_ok(judge(aim, {**ADMIN, **spoiled, "own create pytorchjobs": DENIED}))
    assert (found.severity, "admin may not create pytorchjobs" in found.message) == ("warning", True)
    assert f"the steps run as {good.ACCOUNT}, whose rights `start` checks" in found.message


def test_where_the_steps_run_here_the_own_rights_count() -> None:
    aim = good.target(is_inside=False, steps={"enabled": False})
    (found,) = not_ok(judge(aim, {**ADMIN, "own create pytorchjobs": DENIED}))
    assert (found.severity, "admin may not create pytorchjobs" in found.message) == ("error", True)
