"""The cluster's launcher over a cluster that a test writes down: what only someone who watches for a while can know."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ClusterError, ClusterForbidden
from steps.flow import launchers
from steps.job.job import Job
from steps.job.snapshot import Phase, Reason
from steps.protocol.rundir import TrainDir
from steps.pytorchjob.launcher import KubeLauncher
from steps.pytorchjob.spec import Code
from steps.settings.config import parse_settings
from tests.pytorchjob.test_informer import Listed
from tests.pytorchjob.test_node_marks import MARKED, WORDS
from tests.pytorchjob.test_snapshot import disrupted, job, pod, terminated, unscheduled, waiting


@dataclass
class Cluster:
    """`Kube`, written down. Its watch tells nothing: the launcher sees what was there when it began, and what it asks for."""

    namespace: str = "team"
    found: dict[str, Any] | None = None
    pods: list[dict[str, Any]] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    ready: bool | None = True
    log_error: ClusterError | None = None
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def list(self, kind: str, **_: Any) -> Listed:
        return Listed(tuple(self.pods) if kind == "pods" else ((self.found,) if self.found else ()))

    def watch(self, kind: str, version: str, **_: Any) -> Any:
        raise ClusterForbidden("may not watch")

    def create(self, manifest: dict[str, Any]) -> dict[str, Any] | None:
        self.calls.append("create")
        if self.found:
            return None
        self.found = {**job(), "metadata": {**manifest["metadata"], "uid": "made"}, "status": {}}
        return self.found

    def job(self, name: str) -> dict[str, Any] | None:
        self.calls.append("job")
        return self.found

    def delete(self, name: str) -> None:
        self.calls.append(f"delete {name}")

    def events(self, name: str) -> tuple[dict[str, Any], ...]:
        self.calls.append("events")
        return tuple(self.told)

    def is_node_ready(self, name: str) -> bool | None:
        self.calls.append(f"node {name}")
        return self.ready

    def node(self, name: str) -> dict[str, Any] | None:
        return self.nodes.get(name)

    def log(self, pod: str, *, lines: int) -> str:
        if self.log_error:
            raise self.log_error
        return f"log of {pod}"


@dataclass
class Time:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Scene:
    folder: Path
    cluster: Cluster = field(default_factory=Cluster)
    time: Time = field(default_factory=Time)
    recovery: str = "client"

    def __post_init__(self) -> None:
        directory = TrainDir(self.folder / "train-x")
        self.job = Job("m", {}, directory, "x", 10, processes=32, nodes=2, label="demo")
        raw = {
            "namespace": "hyperpod-team",
            "image": "i",
            "nodes": 2,
            "mount_path": str(self.folder),
            "recovery": self.recovery,
        }
        root = str(self.folder)
        settings = parse_settings(
            {
                "storage": {"root": root, "cache": root},
                "launcher": {"kind": "pytorchjob"},
                "cluster": {**raw, "api_patience_s": 30},
            }
        )
        self.spec = launchers.spec_of(settings, run="F/1", step="train", code=Code("c", "d"))
        self.launcher = KubeLauncher(self.spec, self.cluster, clock=self.time)  # type: ignore[arg-type]

    def read(self, after_s: float = 0.0) -> Any:
        self.time.now_s += after_s
        return self.launcher.read(self.job, 1)


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    made = Scene(tmp_path)
    yield made
    made.launcher.close()


def test_a_job_is_made_once_and_found_by_the_next_launcher(scene: Scene) -> None:
    scene.launcher.create(scene.job, 1)
    assert scene.read().phase is Phase.STARTING
    again = KubeLauncher(scene.spec, scene.cluster, clock=scene.time)  # type: ignore[arg-type]
    again.create(scene.job, 1)
    again.close()
    assert scene.cluster.calls.count("create") == 2


def test_a_job_of_the_same_name_that_is_not_ours_is_left_alone(scene: Scene) -> None:
    scene.cluster.found = job("Running")
    with pytest.raises(
        ClusterError, match=r"exists and is not this one \(hyperpod-lora/directory: expected .*kubectl -n team get"
    ):
        scene.launcher.create(scene.job, 1)


def test_a_job_that_vanishes_under_watch_was_cancelled(scene: Scene) -> None:
    scene.launcher.create(scene.job, 1)
    assert scene.read().phase is Phase.STARTING
    scene.launcher._watched[1].informer._known["pytorchjobs"].clear()
    scene.cluster.found = None
    assert scene.read(5).reason is Reason.CANCELLED


def test_a_job_that_vanished_while_nobody_watched_is_tried_again(scene: Scene) -> None:
    (scene.job.directory.attempt(1) / "nodes").mkdir(parents=True)
    found = scene.read()
    assert (found.phase, found.reason) == (Phase.FAILED, Reason.PREEMPTED)
    assert "deleted while nobody watched" in found.message


def test_a_job_that_never_was_is_gone_and_no_more(scene: Scene) -> None:
    assert (scene.read().phase, scene.read().reason) == (Phase.GONE, Reason.NONE)
    assert scene.cluster.calls.count("job") == 1  # asked again only after a while


def test_a_spec_that_the_operator_ignores_is_named_after_a_minute(scene: Scene) -> None:
    scene.cluster.told = [
        {"type": "Warning", "reason": "PyTorchJobFailedValidation", "message": "no container named pytorch"}
    ]
    scene.launcher.create(scene.job, 1)
    assert scene.read(10).phase is Phase.STARTING
    found = scene.read(60)
    assert (found.phase, found.reason, found.is_refused) == (Phase.FAILED, Reason.CONFIG, True)
    assert "no container named pytorch" in found.message


def test_a_launcher_that_comes_when_the_pod_only_says_back_off_reads_why_in_its_events(scene: Scene) -> None:
    bare = waiting("ImagePullBackOff", 'Back-off pulling image "x"')
    scene.cluster.found, scene.cluster.pods = job("Created"), [pod(0), pod(1, "Pending", state=bare)]
    scene.cluster.told = [{"reason": "Failed", "message": 'Failed to pull image "x": manifest unknown'}]
    found = scene.read(100.0).workers[1]
    assert (found.reason, found.may_pass) == (Reason.IMAGE, True)
    assert found.message == ('ImagePullBackOff: Back-off pulling image "x": Failed to pull image "x": manifest unknown')


def test_a_quota_is_read_from_the_events_and_asked_for_seldom(scene: Scene) -> None:
    told = {"type": "Warning", "reason": "FailedCreatePod", "message": "exceeded quota: tight"}
    scene.cluster.told = [told, {"type": "Normal", "reason": "x", "message": "y"}]
    scene.cluster.found = job("Created")
    for _ in range(10):
        found = scene.read(3)
    assert (found.reason, found.message) == (Reason.CONFIG, "FailedCreatePod: exceeded quota: tight")
    assert scene.cluster.calls.count("events") == 1


def leaving(*conditions: dict[str, Any]) -> dict[str, Any]:
    found = pod(1, conditions=conditions, deleting=True)
    found["metadata"]["deletionGracePeriodSeconds"] = 30
    return found


@pytest.mark.parametrize(
    ("conditions", "ready", "after_s", "remaining"),
    [
        ((disrupted("DeletionByTaintManager"),), False, 3, 2),
        ((disrupted("DeletionByTaintManager"),), None, 3, 2),
        ((disrupted("DeletionByTaintManager"),), True, 100, 3),
        ((), False, 3, 3),
        ((), False, 40, 2),
        ((), None, 40, 3),
    ],
    ids=[
        "given up, node dead",
        "given up, nobody may look",
        "given up, node back",
        "within its grace",
        "after its grace",
        "slow",
    ],
)
def test_a_pod_of_a_dead_node_is_not_waited_for(
    scene: Scene, conditions: tuple[dict[str, Any], ...], ready: bool | None, after_s: float, remaining: int
) -> None:
    scene.cluster.found, scene.cluster.ready = job("Running"), ready
    scene.cluster.pods = [pod(0), leaving(*conditions)]
    scene.time.now_s = 10.0
    scene.read()
    assert scene.read(after_s).remaining == remaining
    assert scene.read(0.1).remaining == remaining


def test_an_api_that_is_away_for_too_long_ends_in_words(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.cluster.found = job("Running")
    scene.read()
    assert scene.read().silent_s == 0.0
    monkeypatch.setattr(type(scene.launcher._watched[1].informer), "silent_s", 29.0)
    assert scene.read().silent_s == 29.0
    monkeypatch.setattr(type(scene.launcher._watched[1].informer), "silent_s", 31.0)
    with pytest.raises(ClusterError, match=r"away for 31 s .*hyperpod-lora resume .*` adopts them"):
        scene.read()


def test_the_failed_pod_is_looked_for_when_the_job_failed_first(scene: Scene) -> None:
    """Two streams: the job's `Failed` may come before the pod's exit code."""
    scene.cluster.found, scene.cluster.pods = job("Running"), [pod(0), pod(1)]
    assert scene.read().phase is Phase.RUNNING
    scene.launcher._watched[1].informer._known["pytorchjobs"] = {"j1": job("Failed", message="1 failed")}
    scene.cluster.pods = [pod(0), pod(1, "Failed", state=terminated(137))]
    found = scene.read()
    assert [worker.exit_code for worker in found.workers] == [None, 137]


def test_a_node_that_the_platform_marked_is_told_with_its_reason(scene: Scene) -> None:
    scene.cluster.found, scene.cluster.pods = job("Running"), [pod(0), pod(1, "Failed", state=terminated(137))]
    scene.cluster.nodes = {"node-1": MARKED}
    found = scene.read()
    assert (found.workers[1].reason, found.workers[1].message) == (Reason.NODE, WORDS)


def test_a_victims_culprit_speaks_by_its_exit_file_and_its_node_by_its_mark(scene: Scene) -> None:
    """The culprit's pod still runs, as far as the API says; what it wrote lies on the shared directory already."""
    words = json.dumps({"reason": "peer", "message": "another node's failed first"})
    scene.cluster.found = job("Running")
    scene.cluster.pods = [pod(0, "Failed", state=terminated(143, message=words)), pod(1)]
    assert scene.read().names_another
    folder = scene.job.directory.attempt(1) / "nodes" / "001"
    folder.mkdir(parents=True)
    ranks = {"32": {"exit_code": -9, "finished_s": 1.0}}
    (folder / "exit.json").write_text(json.dumps({"exit_code": 1, "reason": "", "ranks": ranks}))
    scene.cluster.nodes = {"node-1": MARKED}
    found = scene.read()
    assert (found.workers[1].exit_code, found.workers[1].reason, found.workers[1].message) == (-9, Reason.NODE, WORDS)


def test_without_the_right_to_look_nothing_is_made(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str, **_: Any) -> Listed:
        raise ClusterForbidden("may not list")

    monkeypatch.setattr(scene.cluster, "list", refuse)
    with pytest.raises(ClusterForbidden):
        scene.launcher.create(scene.job, 1)
    assert scene.cluster.calls == []


def test_deletion_tells_the_grace_and_asks_for_the_foreground(scene: Scene) -> None:
    scene.job.directory.attempt(1).mkdir(parents=True)
    scene.launcher.delete(scene.job, 1, grace_s=7.0)
    assert json.loads((scene.job.directory.attempt(1) / "stop.json").read_text()) == {"grace_s": 7.0}
    assert scene.cluster.calls == [f"delete {scene.launcher._pod_name(scene.job, 1, 0).removesuffix('-worker-0')}"]


def test_a_ranks_log_is_its_file_and_else_its_pods(scene: Scene) -> None:
    folder = scene.job.directory.attempt(1)
    folder.mkdir(parents=True)
    (folder / "rank-33.log").write_text("from the file\n")
    assert scene.launcher.logs(scene.job, 1, 33) == "from the file"
    assert scene.launcher.logs(scene.job, 1, 40).endswith("-worker-1")


def test_evidence_is_kept_even_where_logs_may_not_be_read(scene: Scene) -> None:
    scene.cluster.found = job("Running")
    scene.cluster.found["metadata"]["managedFields"] = ["noise"]
    scene.cluster.pods = [pod(0), pod(1, "Failed", state=terminated(1)), pod(2, conditions=(unscheduled("x"),))]
    scene.cluster.pods.append(pod(3, state=terminated(137)))
    scene.cluster.told = [{"reason": "Killing", "message": "m", "type": "Normal", "count": 1, "source": "noise"}]
    scene.cluster.log_error = ClusterForbidden("pods/log is forbidden")
    found = scene.launcher.evidence(scene.job, 1)
    assert set(found) == {"job.yaml", "pods.yaml", "events.yaml", "j-worker-0.log", "j-worker-1.log", "j-worker-3.log"}
    assert "noise" not in "".join(found.values())
    assert found["j-worker-1.log"] == "(not read: pods/log is forbidden)\n"
