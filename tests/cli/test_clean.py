"""`clean` on made-up run directories: what it shows, ends and removes."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steps.cli import clean as module
from steps.errors import StorageError
from steps.job import local_jobs
from steps.job.agent import in_use as in_use_module
from steps.job.agent.agent import DETACHED
from steps.job.agent.in_use import REMOVAL, hand_over, in_use, users_of
from steps.job.agent.processes import MARKER, identify, marker_of
from steps.job.history import Attempt, History
from steps.protocol.rundir import TrainDir, write_json
from steps.settings.places import project_root
from tests.cli.cli_harness import call, make_run


def start_marked(train: TrainDir) -> subprocess.Popen[bytes]:
    """A process that looks like a worker of the training's first attempt."""
    marker = {MARKER: marker_of(train.path, 1)}
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **marker})


def test_clean_without_yes_shows_and_removes_nothing(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    result = call("clean", "--root", tmp_path)
    assert result.exit_code == 0
    assert f"MiB  {train.path.parent}" in result.output
    assert "Nothing was removed; --yes removes all of this" in result.output
    assert train.checkpoints.is_dir()


def test_clean_with_yes_removes_what_is_old_enough(tmp_path: Path) -> None:
    old, young = make_run(tmp_path, "7", age_days=3), make_run(tmp_path, "8")
    result = call("clean", "--root", tmp_path, "--older-than-days", "2", "--yes")
    assert result.exit_code == 0
    assert "Nothing was removed" not in result.output
    assert not old.path.parent.exists()
    assert young.checkpoints.is_dir()
    assert [path.name for path in (tmp_path / "LoraFlow").iterdir()] == ["8"]


def test_clean_of_named_runs_leaves_the_others(tmp_path: Path) -> None:
    one, other = make_run(tmp_path, "7"), make_run(tmp_path, "8")
    assert call("clean", "LoraFlow/7", "--root", tmp_path, "--yes").exit_code == 0
    assert not one.path.parent.exists()
    assert other.checkpoints.is_dir()
    said = call("clean", "9", "--root", tmp_path, "--yes")
    assert said.exit_code != 0
    assert "no run '9' below" in said.output
    assert other.checkpoints.is_dir()


def finished(train: TrainDir) -> Path:
    """Its run, with all that stages leave."""
    run = train.path.parent
    for name in ("merged-abc", "prepared-abc", "evaluation-abc"):
        (run / name).mkdir()
    train.adapter.mkdir()
    (run / "evaluation-abc" / "report.json").write_text("{}")
    return run


def test_clean_that_keeps_adapters_removes_what_they_can_do_without(tmp_path: Path) -> None:
    train, unfinished = make_run(tmp_path, "7"), make_run(tmp_path, "8")
    run = finished(train)
    (unfinished.path.parent / "prepared-abc").mkdir()
    unfinished.adapter.mkdir()  # trained, and not evaluated yet: merge and evaluation need the rest
    assert call("clean", "--keep", "adapters", "--root", tmp_path).exit_code == 0
    assert train.checkpoints.is_dir()
    assert call("clean", "--keep", "adapters", "--root", tmp_path, "--yes").exit_code == 0
    assert sorted(path.name for path in run.glob("[!.]*")) == ["evaluation-abc", "train-abc"]
    assert sorted(path.name for path in train.path.iterdir()) == ["adapter"]
    assert unfinished.checkpoints.is_dir()
    assert (unfinished.path.parent / "prepared-abc").is_dir()


def test_clean_that_keeps_adapters_leaves_what_any_other_run_was_made_from(tmp_path: Path) -> None:
    base, other = finished(make_run(tmp_path, "7")), finished(make_run(tmp_path, "8"))
    write_json(other / "plan.json", {"base": {"path": str(base / "merged-abc")}})
    said = call("clean", "--keep", "adapters", "--root", tmp_path, "--yes")
    assert f"in use, left alone: {base}: run 8 was made from what is in it, and stays" in said.output
    assert (base / "merged-abc").is_dir()
    assert not (other / "merged-abc").exists()


@pytest.mark.parametrize("words", [("--older-than-days", "-1"), ("--keep", "adapters", "--damaged")])
def test_clean_refuses_what_would_mean_something_else(tmp_path: Path, words: tuple[str, ...]) -> None:
    train = make_run(tmp_path)
    assert call("clean", "--root", tmp_path, "--yes", *words).exit_code == 2
    assert train.checkpoints.is_dir()


def test_clean_leaves_a_run_with_a_living_supervisor_alone(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    write_json(train.holder, {**identify(os.getpid()), "node": platform.node()})
    said = call("clean", "--root", tmp_path, "--yes").output
    assert f"in use, left alone: {train.path.parent}: the launcher of train-abc (process {os.getpid()} on " in said
    assert train.checkpoints.is_dir()


@pytest.mark.parametrize("place", [".in-use/merge-1.json", "train-abc/supervisor.json"])
def test_clean_leaves_a_run_alone_that_another_host_uses(tmp_path: Path, place: str) -> None:
    run = make_run(tmp_path).path.parent
    write_json(run / place, {**identify(1), "boot": "another", "node": "node-b", "what": "merge"})
    assert "process 1 on node-b" in call("clean", "--root", tmp_path, "--yes").output
    assert run.is_dir()
    os.utime(run / place, (1, 1))
    call("clean", "--root", tmp_path, "--yes")
    assert not run.exists()


@pytest.mark.parametrize("stage", ["prepare", "merge", "evaluate", "compile"])
def test_clean_leaves_a_run_alone_while_a_stage_of_it_works(tmp_path: Path, stage: str) -> None:
    run = make_run(tmp_path).path.parent
    with in_use(run, stage):
        assert f"in use, left alone: {run}: {stage} (process" in call("clean", "--root", tmp_path, "--yes").output
        assert run.is_dir()


def test_clean_leaves_a_run_alone_whose_flow_is_between_two_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path).path.parent
    hand_over(run, "17")
    said = call("clean", "--root", tmp_path, "--yes").output
    assert f"in use, left alone: {run}: a flow that is between two steps (process {os.getppid()} on " in said
    assert run.is_dir()


def test_clean_asks_for_the_config_before_it_removes_a_run_whose_attempt_may_be_on_a_cluster(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    write_json(train.history, History("abc", (Attempt(1, 0.0),)).to_dict())
    said = call("clean", "--root", tmp_path, "--yes").output
    assert "attempt 1 of train-abc is not known to have ended, and may run or wait on a cluster: say --config" in said
    assert train.path.is_dir()
    call("clean", "--root", tmp_path, "--yes", "--config", project_root() / "config" / "local.yaml")
    assert not train.path.exists()


def test_a_training_of_three_days_is_not_older_than_one(tmp_path: Path) -> None:
    train = make_run(tmp_path, age_days=3)
    (train.checkpoints / "just-now").touch()
    call("clean", "--root", tmp_path, "--older-than-days", "1", "--yes")
    assert train.path.is_dir()


def test_clean_finds_processes_through_a_link_to_the_root(tmp_path: Path) -> None:
    train = make_run(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    worker = start_marked(TrainDir(tmp_path / "link" / "LoraFlow" / "7" / "train-abc"))
    try:
        said = call("clean", "--root", tmp_path / "link").output
        assert f"running, no launcher: attempt 1 of {train.path.resolve()}, 1 processes" in said
        assert str(worker.pid) in call("status", "7", "--root", tmp_path / "link").output
    finally:
        worker.kill()
        worker.wait()


def test_clean_leaves_workers_alone_that_a_person_left_running(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    worker = start_marked(train)
    try:
        train.attempt(1).mkdir(parents=True)
        (train.attempt(1) / "lease").write_text(DETACHED)
        write_json(train.files(1).agent.state, identify(worker.pid))
        assert f"running, left running by a person: {train.path}" in call("clean", "--root", tmp_path, "--yes").output
        assert worker.poll() is None
        assert train.path.is_dir()
    finally:
        worker.kill()
        worker.wait()


def test_clean_ends_processes_that_nobody_watches_and_no_others(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    worker = start_marked(train)
    try:
        write_json(train.holder, {**identify(os.getpid()), "node": platform.node()})
        assert f"running, watched: {train.path} (left alone)" in call("clean", "--root", tmp_path, "--yes").output
        assert worker.poll() is None
        train.holder.unlink()
        assert (
            f"running, no launcher: attempt 1 of {train.path}, 1 processes" in call("clean", "--root", tmp_path).output
        )
        assert worker.poll() is None
        assert "  ended, its state is saved" in call("clean", "--root", tmp_path, "--yes").output
        assert worker.wait(10) == -signal.SIGTERM
    finally:
        worker.kill()
        worker.wait()


def test_clean_of_what_was_set_aside_leaves_the_run(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    run = train.path.parent
    complete = list(train.checkpoints.iterdir())
    aside = [
        train.checkpoints / "step-000020.001-01.damaged",
        run / "prepared-x.damaged-2",
        run / ".merged-x.damaged-1",
    ]
    for path in (*aside, run / "merged-damaged"):
        path.mkdir()
    shown = call("clean", "--damaged", "--root", tmp_path).output
    assert all(str(path) in shown and path.is_dir() for path in aside)
    assert str(run / "merged-damaged") not in shown
    call("clean", "--damaged", "--root", tmp_path, "--yes")
    assert not any(path.exists() for path in aside)
    assert list(train.checkpoints.iterdir()) == complete
    assert (run / "merged-damaged").is_dir()


def test_clean_of_nothing_says_so(tmp_path: Path) -> None:
    assert "Nothing was removed" in call("clean", "--root", tmp_path / "none").output


def test_a_removal_leaves_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, "2")
    call("clean", "--root", tmp_path, "--yes")
    assert list((tmp_path / "LoraFlow").iterdir()) == []


def test_a_run_that_becomes_in_use_between_the_look_and_the_removal_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes are counted in between, which takes minutes on a large directory."""
    run = make_run(tmp_path).path.parent
    count = local_jobs.size_of
    with contextlib.ExitStack() as stages:

        def begin_a_stage(folder: Path) -> int:
            stages.enter_context(in_use(folder, "merge"))
            return count(folder)

        monkeypatch.setattr(local_jobs, "size_of", begin_a_stage)
        done = call("clean", "--root", tmp_path, "--yes")
        assert f"in use since it was shown, left alone: {run}: merge (process {os.getpid()}" in done.output
        assert done.exit_code == 0
        assert (run / "train-abc" / "checkpoints").is_dir()
        assert [user.what for user in users_of(run)] == ["merge"]


def test_a_stage_that_begins_while_the_run_is_being_removed_goes_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use_module, "PATIENCE_S", 0.0)
    run = make_run(tmp_path).path.parent
    rename = module.out_of_the_way
    seen: list[str] = []

    def begin_a_stage(path: Path) -> Path:
        with pytest.raises(StorageError) as caught, in_use(path, "merge"):
            pass
        seen.append(str(caught.value))
        return rename(path)

    monkeypatch.setattr(module, "out_of_the_way", begin_a_stage)
    assert call("clean", "--root", tmp_path, "--yes").exit_code == 0
    assert "is being removed: merge cannot begin beside a removal by `hyperpod-lora clean` (process" in seen[0]
    assert not run.exists()
    with pytest.raises(StorageError, match="is gone, and evaluate needs what was in it"), in_use(run, "evaluate"):
        pass
    assert not run.exists(), "an empty one in its place"


def test_two_removals_of_one_run_leave_it_to_one_another(tmp_path: Path) -> None:
    run = make_run(tmp_path).path.parent
    write_json(run / ".in-use" / "removal-1.json", {**identify(os.getppid()), "what": REMOVAL})
    assert "a removal by `hyperpod-lora clean` (process" in call("clean", "--root", tmp_path, "--yes").output
    assert run.is_dir()


@pytest.mark.parametrize("record", ["options.json", "plan.json", "train-x/spec.json"])
def test_a_run_that_another_one_was_made_from_stays_with_it(tmp_path: Path, record: str) -> None:
    """`--init-adapter RUN/train-…/adapter`, `--model RUN/merged-…`: the younger run reads there until it has ended."""
    root, link = tmp_path / "root", tmp_path / "link"
    first, second, third = (make_run(root, name, age_days=3).path.parent for name in "123")
    unnamed = make_run(root, "11", age_days=3).path.parent
    link.symlink_to(root / "LoraFlow")
    write_json(second / record, {"options": [{"init_adapter": f"{link}/1/train-abc/adapter"}, "/tmp/x\0y"]})
    write_json(third / record, {"base": {"path": str(second / "merged-1")}})
    for path in (second / record, second):
        os.utime(path, (1, 1))
    done = call("clean", "--root", root, "--older-than-days", "1", "--yes")
    assert f"in use, left alone: {second}: run 3 was made from what is in it, and stays" in done.output
    assert f"in use, left alone: {first}: run 2 was made from what is in it, and stays" in done.output
    assert first.is_dir()
    assert second.is_dir()
    assert not unnamed.exists()
    call("clean", "--root", root, "--yes")
    assert list((root / "LoraFlow").iterdir()) == []


def test_a_damaged_record_names_nothing(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "1", age_days=3).path.parent, make_run(tmp_path, "2").path.parent
    (second / "plan.json").write_text("{")
    call("clean", "--root", tmp_path, "--older-than-days", "1", "--yes")
    assert not first.exists()
    assert second.is_dir()


def test_clean_goes_on_after_a_run_that_it_may_not_remove_and_names_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path, name).path.parent for name in "1234"]
    (runs[0] / ".in-use").write_text("a file where the folder has to be")
    rename = module.out_of_the_way

    def refuse(path: Path) -> Path:
        if path == runs[2]:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path / "train-abc"))
        return rename(path)

    monkeypatch.setattr(module, "out_of_the_way", refuse)
    done = call("clean", "--root", tmp_path, "--yes")
    assert done.exit_code == 1
    assert f"not removed: {runs[0]}: " in done.output
    assert f"not removed: {runs[2]}: Operation not permitted ({runs[2]}/train-abc)" in done.output
    assert "2 of 4 folders could not be removed, each named above" in done.output
    assert [path.is_dir() for path in runs] == [True, False, True, False]


def test_what_a_broken_removal_left_is_removed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path).path.parent
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", lambda path: (path / "train-abc").rename(path / "half"))
        call("clean", "--root", tmp_path, "--yes")
    (left,) = run.parent.iterdir()
    assert left.name.startswith(".7.removed-")
    done = call("clean", "--root", tmp_path, "--yes")
    assert f"MiB  {left}" in done.output
    assert list(run.parent.iterdir()) == []
