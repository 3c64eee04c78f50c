"""`status` on made-up run directories and on a made-up cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.cli.status import cluster_status
from steps.cli.view.place import look
from steps.errors import ClusterError
from steps.plain_text import command
from steps.protocol.rundir import write_json
from tests.cli.cli_harness import call, make_run
from tests.shared.cluster_objects import BORN_S, NAME, FakeCluster, make_job, running, visible

NOWHERE = Path("/nowhere")


def test_status_tells_each_training(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    assert call("status", "--root", tmp_path).output.splitlines()[1].split()[:5] == ["7", "–", "–", "new", "0/?"]
    result = call("status", "7", "--root", tmp_path)
    assert result.exit_code == 0
    assert str(train.path) in result.output
    assert "new, step 0 of ?, newest complete checkpoint: 40" in result.output


def test_status_shows_the_run_asked_for_and_says_where_it_looked(tmp_path: Path) -> None:
    make_run(tmp_path, "7")
    make_run(tmp_path, "8")
    assert "/LoraFlow/7/" not in call("status", "8", "--root", tmp_path).output
    missing = call("status", "9", "--root", tmp_path)
    assert missing.exit_code == 1
    assert f"Storage failed: no run '9' below {tmp_path}; the newest are" in missing.output
    assert "no training below" in call("status", "--root", tmp_path / "none").output


def test_status_of_a_damaged_history_names_the_file(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    write_json(train.history, {"schema": "something else"})
    assert f"{train.history} cannot be read" in call("status", "--root", tmp_path).output
    result = call("status", "7", "--root", tmp_path)
    assert result.exit_code == 1
    assert f"{train.history} cannot be read" in result.output
    assert f"`mv {train.history} {train.history}.damaged`, then `{command('resume', 7)}`" in result.output


def test_status_from_a_laptop_tells_what_labels_and_logs_tell() -> None:
    lines = cluster_status(running(), NOWHERE, "17", now_s=BORN_S + 20)  # type: ignore[arg-type]
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
    [line] = cluster_status(FakeCluster(), NOWHERE, "", now_s=BORN_S)  # type: ignore[arg-type]
    assert line == "no PyTorchJob of hyperpod-lora in namespace ns, and no training below /nowhere"


def test_a_job_without_pods_is_explained_by_its_events() -> None:
    cluster = FakeCluster([make_job(conditions=("Created",))], warnings={NAME: "exceeded quota: devices"})
    [job] = look(cluster)  # type: ignore[arg-type]
    assert job.snapshot.message == "FailedCreatePod: exceeded quota: devices"
