"""The command line on a made-up root: what it shows, what it removes, and the words of its errors."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from steps.cli.main import ELSEWHERE, Words, main, remove
from steps.cli.run_folders import find_run, run_folders, storage_root, story
from steps.errors import StorageError
from steps.job.agent.processes import MARKER, identify, marker_of
from steps.job.lease import HOLDER
from steps.protocol.checkpoints import Claim, checkpoint_path, commit
from steps.protocol.rundir import TrainDir, write_json
from steps.settings.catalog import project_root


def call(*words: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def make_run(root: Path, run: str = "7", *, age_days: float = 0.0) -> TrainDir:
    """A run directory with one checkpoint and no process."""
    train = TrainDir(root / "LoraFlow" / run / "train-abc")
    path = checkpoint_path(train.checkpoints, 40, Claim(1, 1))
    path.mkdir(parents=True)
    (path / "state").write_text("x")
    commit(path, step=40, claim=Claim(1, 1), identity="abc", layout={})
    then = time.time() - age_days * 86400
    os.utime(train.path.parent, (then, then))
    return train


def test_status_tells_each_training(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    result = call("status", "--root", tmp_path)
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
    result = call("status", "--root", tmp_path)
    assert result.exit_code == 1
    assert f"{train.history} cannot be read" in result.output
    assert "move it away" in result.output


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


def test_clean_leaves_a_run_with_a_living_supervisor_alone(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    write_json(train.path / HOLDER, {**identify(os.getpid()), "node": platform.node()})
    assert str(train.path.parent) not in call("clean", "--root", tmp_path, "--yes").output
    assert train.checkpoints.is_dir()


def start_marked(train: TrainDir) -> subprocess.Popen[bytes]:
    """A process that looks like a worker of the training's first attempt."""
    marker = {MARKER: marker_of(train.path.resolve(), 1)}
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **marker})


def test_clean_ends_processes_that_nobody_watches_and_no_others(tmp_path: Path) -> None:
    train = make_run(tmp_path)
    worker = start_marked(train)
    try:
        write_json(train.path / HOLDER, {**identify(os.getpid()), "node": platform.node()})
        assert f"running, watched: {train.path} (left alone)" in call("clean", "--root", tmp_path, "--yes").output
        assert worker.poll() is None
        (train.path / HOLDER).unlink()
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


def test_run_folders_are_the_oldest_first_and_a_removal_leaves_nothing(tmp_path: Path) -> None:
    for run, days in (("1", 1.0), ("2", 5.0), ("3", 3.0)):
        make_run(tmp_path, run, age_days=days)
    (tmp_path / "LoraFlow" / "notes.txt").write_text("")
    found = run_folders(tmp_path, older_than_s=2 * 86400)
    assert [path.name for path in found] == ["2", "3"]
    remove(found[0])
    assert sorted(path.name for path in (tmp_path / "LoraFlow").iterdir()) == ["1", "3", "notes.txt"]


def test_a_relative_root_starts_at_the_project(tmp_path: Path) -> None:
    assert storage_root(".lora") == project_root() / ".lora"
    assert storage_root(str(tmp_path)) == tmp_path


FACTS: dict[str, Any] = {
    "path": "/r/train-a",
    "state": "failed",
    "step": 40,
    "of": 100,
    "complete_step": 30,
    "pids": [11, 12],
    "account": {"total_s": 200.0, "goodput": 0.5},
    "attempts": [
        {"attempt": 1, "class": "hang", "message": "no step for 300 s\nmore"},
        {"attempt": 2, "class": "unknown", "message": ""},
        {"attempt": 3, "class": "succeeded", "message": ""},
    ],
    "verdict": "too often\nEvidence: …",
}


def test_the_story_of_a_training_that_failed() -> None:
    assert story(FACTS) == [
        "/r/train-a",
        "  failed, step 40 of 100, newest complete checkpoint: 30, pids 11, 12",
        "  3 attempt(s), 3 min 20 s in all, goodput 50%",
        "  attempt 1: hang: no step for 300 s",
        "  attempt 2: unknown",
        "  ended for good: too often",
    ]


def test_generate_from_what_is_no_model_is_said_in_words(tmp_path: Path) -> None:
    result = call("generate", tmp_path, "Hello")
    assert result.exit_code == 1
    assert result.output.startswith("Unusable model: ")
    assert str(tmp_path) in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["generate", "/no/such/folder", "Hello"], "'/no/such/folder' does not exist", id="no-folder"),
        pytest.param(["generate", "/", "Hello", "--max-new-tokens", "0"], "0 is not in the range", id="no-tokens"),
        pytest.param(["generate", "/"], "Missing argument 'PROMPT'", id="no-prompt"),
        pytest.param(["clean", "--older-than-days", "soon"], "'soon' is not a valid float", id="days-are-text"),
        pytest.param(["stauts"], "No such command 'stauts'", id="typo"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(words: list[str], said: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert said in result.output


def test_an_adapter_without_its_base_says_what_to_give(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "/gone/tiny"})
    result = call("generate", tmp_path, "Hello")
    assert result.exit_code == 1
    assert "--base" in result.output


def test_an_error_keeps_its_headline() -> None:
    assert Words(StorageError("full")).headline == "Storage failed"


def test_help_names_the_commands_and_imports_none_of_them() -> None:
    shown = call("--help").output
    assert all(f"\n  {command} " in shown for command in ("generate", "clean", *ELSEWHERE))
    program = (
        "import sys; from steps.cli.main import main; main(['--help'], standalone_mode=False);"
        "print([name for name in sys.modules if name.endswith('_cli') or name in ('pydantic', 'yaml')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", sorted(ELSEWHERE))
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage: " in call(command, "--help").output


def test_jobspec_takes_the_flows_own_options() -> None:
    shown = call("jobspec", "--help").output
    assert "--lora-rank" in shown
    assert "--continue-from" not in shown
    assert "No such option '--lora-rnak'" in call("jobspec", "--lora-rnak", "4").output


def test_a_run_is_found_by_id_by_flow_and_id_and_by_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "7").path.parent
    assert [find_run(tmp_path, given) for given in ("7", "LoraFlow/7", str(folder))] == [folder] * 3
    (tmp_path / "ProbeFlow" / "7").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"say LoraFlow/7 or ProbeFlow/7|say ProbeFlow/7 or LoraFlow/7"):
        find_run(tmp_path, "7")
    with pytest.raises(StorageError, match="no run '70' below"):
        find_run(tmp_path, "70")
