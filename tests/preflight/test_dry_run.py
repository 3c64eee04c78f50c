"""The operator's silent rules: each manifest that it would take and never start is refused in words before it is sent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from steps.preflight import manifest, survey
from tests.preflight import preflight_answers as good

Change = Callable[[dict[str, Any]], object]


def worker(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    return found


WRONG: dict[str, tuple[Change, str]] = {
    "a name with a dot": (lambda made: made["metadata"].update(name="a.b"), "not DNS-1035 of at most"),
    "a name that is too long": (lambda made: made["metadata"].update(name="a" * 64), "not DNS-1035 of at most"),
    "processes in words": (lambda made: made["spec"].update(nprocPerNode="many"), "nprocPerNode 'many', not a number"),
    "another kind of replica": (
        lambda made: made["spec"]["pytorchReplicaSpecs"].update(
            Chief=copy.deepcopy(made["spec"]["pytorchReplicaSpecs"]["Worker"])
        ),
        "replicas of the unknown kind Chief",
    ),
    "another container's name": (lambda made: worker(made).update(name="main"), "no container pytorch with an image"),
    "no image": (lambda made: worker(made).pop("image"), "no container pytorch with an image among its Workers"),
    "more devices allowed than asked for": (
        lambda made: worker(made)["resources"]["limits"].update({"aws.amazon.com/neuron": "32"}),
        "neuron but limits it to 32: devices must be equal",
    ),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_a_manifest_that_would_never_start_is_refused(change: Change, words: str) -> None:
    made = copy.deepcopy(dict(survey.sample(good.target())))
    change(made)
    (found,) = manifest.judge_manifest(made)
    assert (found.check, found.severity) == ("job", "error")
    assert words in found.message
