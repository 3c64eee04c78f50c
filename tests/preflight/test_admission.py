"""LimitRange and PodSecurity, judged by reading where the account may not try a pod."""

from __future__ import annotations

from typing import Any

import pytest

from steps.preflight import survey
from steps.preflight.finding import Finding
from steps.preflight.question import Answer
from tests.preflight import preflight_answers as good
from tests.preflight.preflight_answers import FORBIDDEN, SPACE, items, judge


def ranged(kind: str = "Container", **limit: Any) -> Answer:
    return items({"metadata": {"name": "team"}, "spec": {"limits": [{"type": kind, **limit}]}})


def level(name: str) -> Answer:
    return Answer(200, {"metadata": {"name": SPACE, "labels": {"pod-security.kubernetes.io/enforce": name}}})


def about_the_pod(spoiled: dict[str, Answer], **cluster: Any) -> list[Finding]:
    return [item for item in judge(good.target(**cluster), {"pod": FORBIDDEN, **spoiled}) if item.check == "pod"]


HOST = {"volumes": [{"name": "tools", "mount_path": "/tools", "host_path": "/opt/tools"}]}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Answer], str]] = {
    "too much memory": (
        {},
        {"limitranges": ranged(max={"memory": "8Gi"})},
        "memory 460Gi is asked for, and the maximum is",
    ),
    "too little memory": ({}, {"limitranges": ranged(min={"memory": "2Ti"})}, "and the minimum is memory 2048Gi"),
    "no limit of cpu": ({}, {"limitranges": ranged(max={"cpu": "500"})}, "it has no limit of cpu"),
    "a default below the request": (
        *({}, {"limitranges": ranged(max={"cpu": "8"}, default={"cpu": "8"})}),
        "cpu 120 is asked for, and the maximum is cpu 8",
    ),
    "a default limit alone": ({}, {"limitranges": ranged(default={"cpu": "8"})}, "more than the default limit cpu 8"),
    "the whole pod": ({}, {"limitranges": ranged("Pod", max={"memory": "8Gi"})}, "refuses a worker's pod: memory"),
    "a ratio": (
        *(
            {"cpu": 2, "instance_type": ""},
            {"limitranges": ranged(default={"cpu": "8"}, maxLimitRequestRatio={"cpu": "2"})},
        ),
        "more than 2 times the request",
    ),
    "restricted, and root": ({"run_as_user": 0}, {"namespace": level("restricted")}, "may run as root"),
    "restricted, and the node's files": (HOST, {"namespace": level("restricted")}, "volume tools is a hostPath"),
    "baseline, and the node's files": (HOST, {"namespace": level("baseline")}, "volume tools is a hostPath"),
}


@pytest.mark.parametrize(("cluster", "spoiled", "words"), REFUSED.values(), ids=REFUSED)
def test_what_would_refuse_the_workers_is_an_error(
    cluster: dict[str, Any], spoiled: dict[str, Answer], words: str
) -> None:
    found = about_the_pod(spoiled, **cluster)
    assert {item.severity for item in found} == {"error"}
    assert words in " ".join(item.message for item in found)


FINE: dict[str, tuple[dict[str, Any], dict[str, Answer]]] = {
    "no rules": ({}, {}),
    "restricted": ({}, {"namespace": level("restricted")}),
    "baseline, as root": ({"run_as_user": 0}, {"namespace": level("baseline")}),
    "privileged": (HOST, {"namespace": level("privileged")}),
    "enough room": ({}, {"limitranges": ranged(min={"memory": "1Gi"}, max={"memory": "2Ti"})}),
    "claims alone": ({}, {"limitranges": ranged("PersistentVolumeClaim", max={"storage": "1Gi"})}),
}


@pytest.mark.parametrize(("cluster", "spoiled"), FINE.values(), ids=FINE)
def test_what_would_not_is_said_as_read(cluster: dict[str, Any], spoiled: dict[str, Answer]) -> None:
    (found,) = about_the_pod(spoiled, **cluster)
    assert (found.severity, "read, not tried" in found.message) == ("ok", True)


def test_what_may_not_be_read_is_named_as_not_checked() -> None:
    found = about_the_pod({"limitranges": FORBIDDEN, "namespace": FORBIDDEN})
    assert [item.severity for item in found] == ["warning", "warning"]
    assert "whether the PodSecurity level refuses the workers' pods is not checked" in found[0].message
    assert "resources: [limitranges], verbs: [list]" in found[1].fix


def test_where_a_pod_can_be_tried_nothing_is_guessed() -> None:
    found = judge(good.target(), {"limitranges": ranged(max={"memory": "8Gi"})})
    assert [item.message for item in found if item.check == "pod"] == [
        "the API server would accept a worker's pod (dry run)"
    ]


def test_both_are_asked_for() -> None:
    aim = good.target()
    asked = survey.questions(aim, survey.sample(aim))
    assert asked["namespace"].path == f"/api/v1/namespaces/{SPACE}"
    assert asked["limitranges"].path == f"/api/v1/namespaces/{SPACE}/limitranges"
