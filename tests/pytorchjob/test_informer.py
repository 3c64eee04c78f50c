"""The watch: what is known follows the cluster, costs few calls, and an API that is away leaves it as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from steps.errors import ClusterError, ClusterForbidden
from steps.pytorchjob import informer as module
from steps.pytorchjob.informer import Informer


@dataclass
class Listed:
    items: tuple[dict[str, Any], ...]
    version: str = "1"


def item(uid: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid}, **more}


@dataclass
class Cluster:
    """A source whose lists and watches a test decides."""

    objects: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"pytorchjobs": [], "pods": []})
    changes: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    error: ClusterError | None = None
    may_watch: bool = True
    calls: list[str] = field(default_factory=list)
    woken: threading.Condition = field(default_factory=threading.Condition)
    bug: Exception | None = None

    def list(self, kind: str, *, patience_s: float | None = None, **selector: str) -> Listed:
        self.calls.append(f"list {kind} {selector}")
        if self.error:
            raise self.error
        return Listed(tuple(self.objects[kind]))

    def watch(self, kind: str, version: str, **selector: str) -> Iterator[tuple[str, dict[str, Any]]]:
        self.calls.append(f"watch {kind} {version}")
        if not self.may_watch:
            raise ClusterForbidden("may not watch")
        while True:
            with self.woken:
                self.woken.wait(0.05)
                mine = [change for change in self.changes if change[0] == kind]
                self.changes = [change for change in self.changes if change[0] != kind]
            for _, what, found in mine:
                yield what, found
            if self.bug:
                raise self.bug
            if self.error:
                raise self.error

    def change(self, kind: str, what: str, found: dict[str, Any]) -> None:
        with self.woken:
            self.changes.append((kind, what, found))
            self.woken.notify_all()


def eventually(ask: Callable[[], object]) -> None:
    until_s = time.monotonic() + 20
    while not ask():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def informer(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Informer]:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(module, "POLL_S", 0.02)
    made = Informer(cluster, "demo-a1")
    yield made
    made.stop()


def test_a_look_before_anything_is_there(informer: Informer) -> None:
    informer.start()
    assert informer.job is None
    assert informer.pods == ()


def test_changes_are_followed_without_another_list(cluster: Cluster, informer: Informer) -> None:
    cluster.objects["pods"] = [item("p0")]
    informer.start()
    eventually(lambda: sum(call.startswith("watch") for call in cluster.calls) == 2)
    before = len(cluster.calls)
    cluster.change("pytorchjobs", "ADDED", item("j"))
    cluster.change("pods", "MODIFIED", item("p0", status="new"))
    cluster.change("pods", "ADDED", item("p1"))
    cluster.change("pods", "BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    eventually(lambda: informer.job and len(informer.pods) == 2)
    assert informer.pods[0]["status"] == "new"
    cluster.change("pods", "DELETED", item("p0"))
    eventually(lambda: [pod["metadata"]["uid"] for pod in informer.pods] == ["p1"])
    assert len(cluster.calls) == before
    assert informer.silent_s == 0.0


def test_a_watch_that_ends_in_order_goes_on_from_where_it_was(
    cluster: Cluster, informer: Informer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(kind: str, version: str, **_: str) -> Iterator[tuple[str, dict[str, Any]]]:
        cluster.calls.append(f"watch {kind} {version}")
        yield "BOOKMARK", {"metadata": {"resourceVersion": f"{int(version) + 1}"}}

    monkeypatch.setattr(cluster, "watch", once)
    informer.start()
    eventually(lambda: "watch pods 3" in cluster.calls)
    assert sum(call.startswith("list pods") for call in cluster.calls) == 2  # the first look, and the thread's


def test_only_this_job_and_its_pods_are_asked_for(cluster: Cluster, informer: Informer) -> None:
    informer.start()
    assert "{'field_selector': 'metadata.name=demo-a1'}" in cluster.calls[0]
    assert "{'label_selector': 'training.kubeflow.org/job-name=demo-a1'}" in cluster.calls[1]


def test_an_api_that_is_away_leaves_what_was_known_and_the_silence_grows(cluster: Cluster, informer: Informer) -> None:
    cluster.objects["pytorchjobs"] = [item("j")]
    informer.start()
    eventually(lambda: informer.silent_s == 0.0)
    cluster.error = ClusterError("connection refused")
    eventually(lambda: informer.silent_s > 0.1)
    assert informer.job is not None
    assert "refused" in informer.error
    cluster.objects["pytorchjobs"] = []
    cluster.error = None
    eventually(lambda: informer.silent_s == 0.0)
    assert informer.job is None
    assert informer.error == ""


def test_where_watching_is_not_allowed_it_lists_again(cluster: Cluster, informer: Informer) -> None:
    cluster.may_watch = False
    informer.start()
    cluster.objects["pods"] = [item("p0")]
    eventually(lambda: informer.pods)
    assert informer.silent_s == 0.0  # the lists are answered: nobody is told that the API is away
    assert informer.error == ""
    cluster.error = ClusterError("connection refused")
    eventually(lambda: informer.silent_s > 0.1)
    assert "refused" in informer.error


def test_a_first_look_that_is_refused_is_told(cluster: Cluster, informer: Informer) -> None:
    cluster.error = ClusterForbidden("may not list")
    with pytest.raises(ClusterForbidden):
        informer.start()


def test_a_job_that_was_just_made_is_known_before_the_watch_tells(informer: Informer) -> None:
    informer.note(item("j", status="made"))
    assert informer.job == item("j", status="made")
    informer.note(item("j", status="older"))
    assert informer.job["status"] == "made"


def test_a_second_look_adds_what_is_new_and_never_brings_back_what_is_gone(
    cluster: Cluster, informer: Informer
) -> None:
    cluster.objects["pods"] = [item("p0"), item("p1")]
    informer.start()
    cluster.change("pods", "DELETED", item("p0"))
    eventually(lambda: len(informer.pods) == 1)
    cluster.objects["pods"] = [item("p0"), item("p1", status="failed"), item("p2")]
    informer.look_again()
    assert sorted((pod["metadata"]["uid"], pod.get("status")) for pod in informer.pods) == [
        ("p1", "failed"),
        ("p2", None),
    ]
    cluster.error = ClusterError("away")
    informer.look_again()
    assert len(informer.pods) == 2


def test_the_threads_end_when_they_are_told_to(cluster: Cluster, informer: Informer) -> None:
    informer.start()
    names = [thread for thread in threading.enumerate() if thread.name.startswith("watch-")]
    informer.stop()
    cluster.change("pods", "ADDED", item("p"))
    cluster.change("pytorchjobs", "ADDED", item("j"))
    eventually(lambda: not any(thread.is_alive() for thread in names[-2:]))


def test_a_mistake_in_a_thread_is_not_mistaken_for_a_quiet_cluster(cluster: Cluster, informer: Informer) -> None:
    informer.start()
    cluster.bug = KeyError("raw_object")
    eventually(lambda: informer._broken)
    with pytest.raises(ClusterError, match="nothing watches the cluster any more: KeyError"):
        _ = informer.silent_s
