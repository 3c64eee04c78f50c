"""The supervisor with the real Kubernetes client over real sockets: victims and culprits, half-open connections, lost logins."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from steps.errors import LoraFlowError
from steps.flow import launchers
from steps.job.job import Job, Outside
from steps.job.supervise import JobResult, supervise
from steps.protocol.events import EventWriter
from steps.protocol.rundir import TrainDir, read_json, write_json
from steps.pytorchjob import client as client_module
from steps.pytorchjob import connection as connection_module
from steps.pytorchjob.client import Kube
from steps.pytorchjob.launcher import KubeLauncher
from steps.pytorchjob.spec import Code
from steps.settings.config import Settings, parse_settings
from tests.pytorchjob.http_cluster import JOB_NAME, HttpCluster, running
from tests.pytorchjob.test_client import DEFAULT, TOKEN, configuration
from tests.pytorchjob.test_snapshot import BEGUN, terminated

pytestmark = pytest.mark.whole
PEER = '{"reason": "peer", "message": "its ranks were stopped: another node\'s failed first"}'


def pod_of(job: dict[str, Any], index: int, phase: str = "Running", **state: Any) -> dict[str, Any]:
    name = job["metadata"]["name"]
    labels = {JOB_NAME: name, "training.kubeflow.org/replica-index": str(index)}
    shown = state or {"running": {"startedAt": BEGUN}}
    return {
        "metadata": {"name": f"{name}-worker-{index}", "uid": f"{name}-{index}", "labels": labels},
        "spec": {"nodeName": f"node-{index}"},
        "status": {"phase": phase, "containerStatuses": [{"name": "pytorch", "state": shown}]},
    }


def start_pods(cluster: HttpCluster, job: dict[str, Any]) -> None:
    conditions = [{"type": kind, "status": "True"} for kind in ("Created", "Running")]
    cluster.put("pytorchjobs", {**job, "status": {"conditions": conditions}})
    for index in range(2):
        cluster.put("pods", pod_of(job, index))


@dataclass
class Play:
    """One training of two pods on such a cluster, supervised in a thread."""

    folder: Path
    cluster: HttpCluster
    settings: Settings
    job: Job
    said: list[str] = field(default_factory=list)
    ended: list[JobResult | LoraFlowError] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def resume(self) -> None:
        """As a person does."""
        self.thread.join(60)
        self.ended.clear()
        self.start(is_person=True)

    def start(self, *, is_person: bool = False) -> None:
        kube = Kube("team", context="here", notice=self.said.append, patience_s=60)
        spec = launchers.spec_of(self.settings, run="F/1", step="train", code=Code("c", "d"))
        launcher = KubeLauncher(spec, kube, notice=self.said.append)

        def work() -> None:
            try:
                outside = Outside(notice=self.said.append)
                self.ended.append(supervise(self.job, launcher, self.settings, outside, retry_permanent=is_person))
            except LoraFlowError as error:
                self.ended.append(error)
            finally:
                launcher.close()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def wait(self, check: Callable[[], Any], *, limit_s: float = 60.0) -> Any:
        until_s = time.monotonic() + limit_s
        while not (found := check()):
            assert time.monotonic() < until_s, (self.said, self.ended, self.cluster.asked[-20:])
            time.sleep(0.02)
        return found

    def when_created(self, attempt: int) -> dict[str, Any]:
        jobs = self.cluster.objects["pytorchjobs"]
        return self.wait(lambda: next((job for name, job in jobs.items() if name.endswith(f"-a{attempt}")), None))

    def events(self, attempt: int) -> EventWriter:
        return EventWriter(self.job.directory.events(attempt), attempt=attempt, stream=open("/dev/null", "w"))

    def train(self, attempt: int, last: int) -> None:
        told = self.events(attempt)
        told.emit("started", 0, of=10, world=2)
        for step in range(1, last + 1):
            told.emit("step", step, seconds=1.0)

    def finish(self, attempt: int) -> None:
        job = self.when_created(attempt)
        result = self.job.directory.writers / f"{attempt:03d}-01" / "result"
        result.mkdir(parents=True)
        (result / "adapter").write_text("learned")
        told = {"adapter": {"bytes": 7, "sha256": hashlib.sha256(b"learned").hexdigest()}}
        path = str(result.relative_to(self.job.directory.path))
        self.events(attempt).emit("finished", 10, result=path, files=told)
        for index in range(2):
            self.cluster.put("pods", pod_of(job, index, "Succeeded", **terminated(0, "Completed")))

    def end(self) -> None:
        self.thread.join(60)
        assert isinstance(self.ended[0], JobResult), (self.ended, self.said)

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return list(read_json(self.job.directory.history)["attempts"])


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    with running(start_pods) as cluster:
        monkeypatch.setattr(DEFAULT, str(configuration(tmp_path, cluster.url, {"token": TOKEN})))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        root = str(tmp_path)
        settings = parse_settings(
            {
                "storage": {"root": root, "cache": root},
                "launcher": {"kind": "pytorchjob"},
                "retry": {"delay_s": 0.1},
                "cluster": {"namespace": "team", "image": "i", "nodes": 2, "mount_path": root, "api_patience_s": 60},
            }
        )
        directory = TrainDir(tmp_path / "F" / "1" / "train-x")
        yield Play(tmp_path, cluster, settings, Job("m", {}, directory, "x", 10, nodes=2, label="demo"))


@pytest.mark.parametrize("speaks", ["by its exit file", "by its pod, a moment later"])
def test_a_victim_that_ends_first_does_not_make_the_attempt_free(play: Play, speaks: str) -> None:
    play.start()
    job = play.when_created(1)
    play.train(1, 4)
    play.cluster.put("pods", pod_of(job, 1, "Failed", **terminated(143, message=PEER)))
    if speaks == "by its exit file":
        ranks = {"0": {"exit_code": -9, "finished_s": time.time()}}
        report = {"exit_code": 1, "reason": "", "message": "", "ranks": ranks, "node": "node-0"}
        write_json(play.job.directory.files(1).node(0).exit, report)
    else:
        time.sleep(2.0)
        assert not play.attempts[0]["finished_s"], "it waits for the culprit's own word"
        play.cluster.put("pods", pod_of(job, 0, "Failed", **terminated(137)))
    play.when_created(2)
    play.train(2, 10)
    play.finish(2)
    play.end()
    first = play.attempts[0]
    assert (first["failure_class"], first["rank"], first["node"]) == ("unknown", 0, "node-0")
    assert "was killed by SIGKILL" in first["message"]


def scale_timeouts(monkeypatch: pytest.MonkeyPatch, by: float) -> float:
    """Shorten the client's limits, and say how long a death can be hidden at their real length."""
    watch, listing = client_module.WATCH_TIMEOUT_S, client_module.LIST_TIMEOUT_S
    monkeypatch.setattr(client_module, "WATCH_TIMEOUT_S", tuple(limit * by for limit in watch))
    monkeypatch.setattr(client_module, "LIST_TIMEOUT_S", tuple(limit * by for limit in listing))
    monkeypatch.setattr(connection_module, "TIMEOUT_S", tuple(limit * by for limit in connection_module.TIMEOUT_S))
    return float(watch[1] + listing[1])


def test_a_death_behind_half_open_connections_is_noticed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that stands is dead without a word, those of the client's pool too; new ones are answered."""
    by = 0.1
    assert scale_timeouts(monkeypatch, by) < 30
    play.start()
    job = play.when_created(1)
    play.train(1, 4)
    time.sleep(1.0)
    play.cluster.cut()
    begun_s = time.monotonic()
    play.cluster.put("pods", pod_of(job, 0, "Failed", **terminated(137)))
    play.wait(lambda: play.attempts[0]["finished_s"])
    assert time.monotonic() - begun_s < 30 * by + 10, (
        "the machine may be busy; the limits alone would be 30 s without the scale"
    )
    play.when_created(2)
    play.train(2, 10)
    play.finish(2)
    play.end()
    assert "was killed by SIGKILL" in play.attempts[0]["message"]


@pytest.mark.parametrize("mood", ["anonymous", "denied", "away", "mute"])
def test_an_api_in_a_bad_mood_for_a_while_ends_nothing(play: Play, monkeypatch: pytest.MonkeyPatch, mood: str) -> None:
    scale_timeouts(monkeypatch, 0.05)
    play.start()
    play.when_created(1)
    play.train(1, 4)
    time.sleep(0.5)
    play.cluster.mood = mood
    time.sleep(4.0)
    play.cluster.mood = ""
    play.train(1, 10)
    play.finish(1)
    play.end()
    assert len(play.attempts) == 1
    assert not any("rbac.yaml" in sentence for sentence in play.said)


def test_a_401_after_a_long_outage_is_followed_by_a_new_login(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    scale_timeouts(monkeypatch, 0.05)
    play.cluster.mood = "away"
    threading.Timer(3.0, lambda: setattr(play.cluster, "mood", "denied")).start()
    threading.Timer(4.5, lambda: setattr(play.cluster, "mood", "")).start()
    play.start()
    play.when_created(1)
    play.train(1, 10)
    play.finish(1)
    play.end()
    assert len(play.attempts) == 1


def test_a_job_of_somebody_else_that_has_the_name_is_deleted_and_resume_goes_on(play: Play) -> None:
    play.start()
    job = play.when_created(1)
    play.cluster.put("pytorchjobs", {**job, "metadata": {**job["metadata"], "annotations": {}}})
    name = job["metadata"]["name"]
    play.cluster.delete_job(name)
    play.wait(lambda: play.ended)
    assert "somebody cancelled or deleted it" in str(play.ended[0])
    stranger = {**job, "metadata": {**job["metadata"], "name": f"{name[:-1]}2", "annotations": {}, "uid": "u"}}
    play.cluster.put("pytorchjobs", stranger)
    play.resume()
    play.wait(lambda: play.ended)
    assert re.search(r"delete it if nobody needs it, then `\S*hyperpod-lora resume \d+`", str(play.ended[0]))
    play.cluster.delete_job(f"{name[:-1]}2")
    play.resume()
    play.wait(lambda: len(play.cluster.objects["pods"]) == 2)
    play.train(2, 10)
    play.finish(2)
    play.end()


def test_a_login_that_is_made_again_and_resume_go_on(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "DENIED_S", 1.0)
    play.cluster.mood = "denied"
    play.start()
    play.wait(lambda: play.ended)
    assert re.search(r"log in again, then `\S*hyperpod-lora resume`", str(play.ended[0]))
    play.cluster.mood = ""
    play.resume()
    play.when_created(1)
    play.train(1, 10)
    play.finish(1)
    play.end()
