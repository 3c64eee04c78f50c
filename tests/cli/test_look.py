"""`status` and `logs` on a made-up cluster and on made-up run directories, and the words of their errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from steps.cli.cluster_jobs import SeenJob, see_all
from steps.cli.log_source import follow_file, follow_pods, worded
from steps.cli.look import cluster_log, cluster_status
from steps.cli.main import main
from steps.cli.place import Place, look
from steps.errors import ClusterError, StorageError
from steps.protocol.events import PREFIX, Event
from steps.protocol.rundir import TrainDir
from tests.shared.cluster_objects import BORN_S, FakeCluster, event_lines, make_job, make_pod, visible

NAME = "tiny-orders-train-0a1b2c3d-a1"
HERE = Place(Path("/nowhere"), None)


def running(job: dict[str, Any] | None = None, **given: Any) -> FakeCluster:
    job = job or make_job()
    pods = [make_pod(job, 0), make_pod(job, 1)]
    return FakeCluster([job], pods, {f"{NAME}-worker-0": ["hello", *event_lines(4)]}, **given)


def make_log(folder: Path, *lines: str, attempt: int = 1, rank: int = 0) -> Path:
    path = TrainDir(folder).attempt(attempt) / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_status_from_a_laptop_tells_what_labels_and_logs_tell() -> None:
    lines = cluster_status(running(), HERE.root, "17", now_s=BORN_S + 20)  # type: ignore[arg-type]
    assert lines[0].startswith("LoraFlow/17, train: running, attempt 1")
    assert "  progress   step 4/10 | loss 0.2500 | 200 tokens/s | 3 s left" in lines
    assert lines[-1] == "  (not visible from here: earlier attempts and checkpoints are told where it is mounted)"


def test_status_adds_the_story_where_the_directory_is_visible(tmp_path: Path) -> None:
    folder = tmp_path / "LoraFlow" / "17" / "train-x"
    folder.mkdir(parents=True)
    lines = cluster_status(running(visible(folder)), tmp_path, "", now_s=BORN_S + 20)  # type: ignore[arg-type]
    assert lines[-1] == "    running, step 0 of ?, newest complete checkpoint: 0"
    assert sum(str(folder) in line for line in lines) == 1


def test_status_of_a_run_whose_job_is_gone_falls_back_to_its_directory(tmp_path: Path) -> None:
    (tmp_path / "LoraFlow" / "17" / "train-x").mkdir(parents=True)
    [first, *_] = cluster_status(FakeCluster(), tmp_path, "17", now_s=BORN_S)  # type: ignore[arg-type]
    assert first == str(tmp_path / "LoraFlow" / "17" / "train-x")
    with pytest.raises(ClusterError, match="no PyTorchJob of run '18' in namespace ns"):
        cluster_status(FakeCluster(), tmp_path, "18", now_s=BORN_S)  # type: ignore[arg-type]


def test_nothing_anywhere_is_said() -> None:
    [line] = cluster_status(FakeCluster(), HERE.root, "", now_s=BORN_S)  # type: ignore[arg-type]
    assert line == "no PyTorchJob of hyperpod-lora in namespace ns, and no training below /nowhere"


def test_a_job_without_pods_is_explained_by_its_events() -> None:
    cluster = FakeCluster([make_job(conditions=("Created",))], warnings={NAME: "exceeded quota: devices"})
    [job] = look(cluster)  # type: ignore[arg-type]
    assert job.snapshot.message == "FailedCreatePod: exceeded quota: devices"


def test_the_log_of_a_rank_comes_from_its_nodes_pod() -> None:
    cluster = running()
    cluster.logs[f"{NAME}-worker-1"] = ["of rank 2", "[rank 3] of rank 3"]
    assert cluster_log(cluster, HERE, "17", 3, 10, follow=False) == ["of rank 3"]  # type: ignore[arg-type]
    assert cluster_log(cluster, HERE, "17", 2, 10, follow=False) == ["of rank 2"]  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="has ranks 0 to 3, got --rank 4"):
        cluster_log(cluster, HERE, "17", 4, 10, follow=False)  # type: ignore[arg-type]


def test_a_pod_that_has_not_begun_says_why() -> None:
    cluster = FakeCluster([make_job(conditions=("Created",))], warnings={NAME: "exceeded quota"})
    with pytest.raises(
        ClusterError, match=f"pod {NAME}-worker-0 has no log: the job is starting. FailedCreatePod: exceeded"
    ):
        cluster_log(cluster, HERE, "17", 0, 10, follow=False)  # type: ignore[arg-type]


def test_the_log_of_an_ended_job_is_read_from_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / "train-x"
    make_log(folder, "one", "two", attempt=2)
    cluster = FakeCluster([make_job(directory=str(folder), conditions=("Failed",))])
    assert cluster_log(cluster, HERE, "17", 0, 1, follow=False) == ["two"]  # type: ignore[arg-type]


def test_events_become_sentences_and_stay_as_they_are_with_raw() -> None:
    lines = ["hello", *event_lines(2)]
    assert list(worded(lines, is_raw=True)) == lines
    assert list(worded(lines, is_raw=False)) == [
        "hello",
        "attempt 1: workers started (4 process(es))",
        "model loaded: 10 of 1,000 parameters are trained",
        "step 2/10 | loss 0.5000 | 200 tokens/s | 4 s left",
    ]


def test_following_goes_on_into_the_next_attempt_and_ends_with_success() -> None:
    first, second = make_job(), make_job("second-a2", attempt=2, born=60.0, conditions=("Succeeded",))
    cluster = FakeCluster(logs={f"{NAME}-worker-0": ["one"], "second-a2-worker-0": ["two"]})
    looks: list[list[dict[str, Any]]] = [[], [first], [make_job(conditions=("Failed",))], [], [second], [second]]
    notes: list[str] = []

    def newest() -> SeenJob | None:
        jobs = looks.pop(0)
        seen = see_all(jobs, [make_pod(job, 0, "Succeeded") for job in jobs], {})
        return seen[-1] if seen else None

    found = follow_pods(cluster, newest, 0, lines=5, note=notes.append, clock=lambda: 0.0, sleep=lambda _: None)
    assert list(found) == ["one", "two"]
    assert looks == []
    assert notes == [
        "the job is gone: it ended, or the next attempt is about to begin",
        f"attempt 1: pod {NAME}-worker-0",
        "attempt 1 is failed; waiting for another one",
        "the job is gone: it ended, or the next attempt is about to begin",
        "attempt 2: pod second-a2-worker-0",
    ]


def test_following_a_run_that_brings_nothing_more_ends() -> None:
    now = iter(range(0, 10_000, 50))
    notes: list[str] = []
    found = follow_pods(
        FakeCluster(), lambda: None, 0, lines=5, note=notes.append, clock=lambda: next(now), sleep=lambda _: None
    )
    assert list(found) == []
    assert notes[-1].startswith("nothing more came for 31 min 40 s")


def test_following_a_file_reads_on_into_the_next_attempt(tmp_path: Path) -> None:
    path = make_log(tmp_path, "old", "one")
    told: list[str] = []
    looks = 0

    def is_running() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            with path.open("a") as file:
                file.write("two\nthr")
        if looks == 2:
            with path.open("a") as file:
                file.write("ee\n")
        if looks == 3:
            make_log(tmp_path, "four", attempt=2)
        return looks < 5

    lines = follow_file(tmp_path, 0, is_running=is_running, lines=1, note=told.append, sleep=lambda _: None)
    assert list(lines) == ["one", "two", "three", "four"]
    assert told == [f"attempt 2: {TrainDir(tmp_path).attempt(2) / 'rank-0.log'}"]


def call(*words: str | Path, **environment: str) -> Result:
    result = CliRunner(env=environment).invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def test_logs_of_a_local_run_and_the_words_of_its_errors(tmp_path: Path) -> None:
    make_log(tmp_path / "LoraFlow" / "17" / "train-x", "one", "two", "three")
    assert call("logs", "17", "--root", tmp_path, "--lines", "2").output == "two\nthree\n"
    assert call("logs", "LoraFlow/17", "--root", tmp_path, "--lines", "1", "-f").output == "three\n"
    silent = PREFIX + Event("checkpoint_begin", 1.0, 1, 2).to_line()
    make_log(tmp_path / "LoraFlow" / "18" / "train-x", "one", *event_lines(3), silent, silent)
    shown = call("logs", "18", "--root", tmp_path, "--lines", "2").output.splitlines()
    assert [line.split(" | ")[0] for line in shown] == ["step 2/10", "step 3/10"]
    missing = call("logs", "17", "--root", tmp_path, "--rank", "5")
    assert missing.exit_code == 1
    assert "Storage failed: no rank-5.log in" in missing.output
    assert "there: rank-0.log" in missing.output
    assert f"no run '27' below {tmp_path} (did you mean '17'?)" in call("logs", "27", "--root", tmp_path).output
    assert f"no run 'x' below {tmp_path}; the newest are 17, 18" in call("logs", "x", "--root", tmp_path).output


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a cluster, with a kubeconfig beside it."""
    cluster = {"namespace": "ns", "image": "i", "mount_path": str(tmp_path)}
    storage = {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"launcher": {"kind": "pytorchjob"}, "cluster": cluster, "storage": storage}))
    return path


LOCATION = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
"""The library reads KUBECONFIG when it is imported."""


def test_without_a_kubeconfig_it_says_what_to_do(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOCATION, str(tmp_path / "none"))
    result = call("status", "--config", config)
    assert result.exit_code == 1
    assert "Cluster unavailable: no usable Kubernetes configuration for the current context" in result.output
    assert "aws eks update-kubeconfig" in result.output


class Refusing(BaseHTTPRequestHandler):
    """An API server that allows nothing."""

    def do_GET(self) -> None:
        body = json.dumps({"kind": "Status", "message": 'pytorchjobs is forbidden: User "me" cannot list'}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    path = tmp_path / "kubeconfig"
    raw = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(raw))
    yield path
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("words", [["status"], ["logs", "17"], ["cancel", "17", "--yes"]], ids=lambda words: words[0])
def test_a_missing_permission_is_named_without_the_token(
    words: list[str], config: Path, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOCATION, str(kubeconfig))
    result = call(*words, HYPERPOD_LORA_CONFIG=str(config))
    assert result.exit_code == 1
    assert "Permission missing: listing pytorchjobs in namespace ns: pytorchjobs is forbidden" in result.output
    assert "config/cluster/rbac.yaml" in result.output
    assert "secret-token" not in result.output


def test_a_config_that_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("launcher: {knd: local}")
    assert (
        "launcher.knd: unknown setting (did you mean 'kind'"
        in call("status", "--config", tmp_path / "wrong.yaml").output
    )
    with pytest.raises(StorageError):
        follow_file(tmp_path, 0, is_running=lambda: False, lines=1, note=print).__next__()  # type: ignore[attr-defined]
