"""Every remedy that an error prints works as it is printed: its commands and options exist, and doing it helps."""

from __future__ import annotations

import ast
import errno
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import steps
from steps.cli.main import COMMANDS, main
from steps.errors import JobError, StorageError
from steps.evaluate.report import kept_report, read_samples
from steps.job import messages
from steps.job.classify import Failure
from steps.job.history import History
from steps.job.retry import GiveUp
from steps.protocol import checkpoints
from steps.protocol.checkpoints import Writer, checkpoint_path, choose, commit
from steps.protocol.failure_class import FailureClass
from steps.protocol.rundir import held_lock, write_json
from steps.settings.options import OPTIONS
from tests.job.job_fakes import make_job
from tests.job.test_supervise import Stage, fail_with, hang_at, succeed
from tests.shared.sample_records import REPORT

SOURCES = Path(steps.__file__).parent
OURS = frozenset(f"--{name.replace('_', '-')}" for name in OPTIONS)


def texts() -> Iterator[tuple[str, str]]:
    """Every string that the sources hold, with its place; f-strings with X for what is put in."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(SOURCES)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                yield where, "".join(item.value if isinstance(item, ast.Constant) else "X" for item in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield where, node.value


def options_of(command: str) -> set[str]:
    found = main.get_command(None, command)  # type: ignore[arg-type]
    assert found is not None
    return {name for param in found.params for name in (*param.opts, *param.secondary_opts)}


def test_every_command_that_a_text_names_exists_and_takes_the_options_that_it_is_given() -> None:
    wrong = []
    for where, text in texts():
        for name, rest in re.findall(r"`hyperpod-lora ([a-z]+)([^`]*)`", text):
            if name not in COMMANDS:
                wrong.append(f"{where}: no command {name}")
                continue
            wrong += [
                f"{where}: {name} {option}"
                for option in re.findall(r"--[a-z][a-z-]+", rest)
                if option not in {"--help", *options_of(name)}
            ]
    assert not wrong


def test_resume_is_never_given_a_setting() -> None:
    wrong = [
        (where, found)
        for where, text in texts()
        for found in re.findall(r"resume[^`.;]*?(--[a-z-]+)", text)
        if found in OURS and "takes no options" not in text
    ]
    assert not wrong


@pytest.mark.parametrize("kind", list(FailureClass))
def test_the_options_that_a_failure_advises_exist_and_are_advised_for_the_right_command(
    kind: FailureClass, tmp_path: Path
) -> None:
    text = messages.final_message(make_job(tmp_path), 1, Failure(kind, "it broke"), GiveUp("permanent", "no"), 4)
    remedy = text.partition("What to do: ")[2]
    named = set(re.findall(r"--[a-z][a-z-]+", remedy))
    assert named <= OURS
    if "--continue-from" in named:
        assert f"run --continue-from {tmp_path}" in remedy or "new run, without --continue-from" in remedy
    is_resumed = f"hyperpod-lora resume {tmp_path.name}` goes on" in remedy
    assert is_resumed != bool(kind.meaning.options)


def move_away(error: Exception) -> None:
    """Do what the message prints in backticks."""
    command = str(error).split("`")[1]
    assert command.startswith("mv ")
    subprocess.run(["bash", "-c", command], check=True)


@pytest.mark.parametrize("damage", ['{"schema": "other"}', "{", ""], ids=["schema", "torn", "empty"])
def test_a_damaged_history_moved_away_goes_on_from_the_checkpoint_with_a_new_number(
    tmp_path: Path, damage: str
) -> None:
    stage = Stage(tmp_path, fail_with("node", 75, saves=4), hang_at(5), succeed, retry={"max_attempts": 5})

    def die_in_the_second(seconds: float) -> None:
        stage.clock.sleep(seconds)
        if len(stage.launcher.attempts) == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.run(sleep=die_in_the_second)
    stage.job.directory.history.write_text(damage)
    with pytest.raises(StorageError) as caught:
        stage.run(retry_permanent=True)
    move_away(caught.value)
    assert stage.run(retry_permanent=True).step == 10
    assert [item["number"] for item in stage.history["attempts"]] == [3]
    assert stage.launcher.calls.count("create 3") == 1


@pytest.mark.parametrize("kind", list(FailureClass))
def test_resume_after_a_verdict_goes_on_whatever_failed(tmp_path: Path, kind: FailureClass) -> None:
    stage = Stage(tmp_path, fail_with(kind, kind.exit_code, saves=4), *[fail_with(kind, kind.exit_code)] * 4, succeed)
    with pytest.raises(JobError) as caught:
        stage.run()
    assert "What to do: " in str(caught.value)
    stage.launcher.scripts = [*stage.launcher.scripts[: len(stage.launcher.attempts)], succeed]
    assert stage.run(retry_permanent=True).step == 10


def test_a_history_of_another_training_goes_with_its_directory(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed)
    write_json(stage.job.directory.history, History("other").to_dict())
    with pytest.raises(StorageError, match="remove the directory"):
        stage.run()
    shutil.rmtree(stage.job.directory.path)
    assert stage.run().step == 10


@pytest.mark.parametrize("name", ["attempts", "spec.json", "supervisor.lock", "history.json"])
def test_what_stands_in_the_way_is_named_and_moved_away(tmp_path: Path, name: str) -> None:
    stage = Stage(tmp_path, succeed)
    in_the_way = stage.job.directory.path / name
    in_the_way.parent.mkdir(parents=True)
    if in_the_way.suffix:
        in_the_way.mkdir()
    else:
        in_the_way.write_text("")
    with pytest.raises(StorageError) as caught:
        stage.run()
    assert str(in_the_way) in str(caught.value)
    in_the_way.rename(tmp_path / "away")
    stage.launcher.looks.clear()
    assert stage.run(retry_permanent=True).step == 10


def test_a_checkpoint_that_cannot_be_read_is_moved_away_and_the_one_before_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4):
        path = checkpoint_path(tmp_path, step, Writer(1, 1))
        path.mkdir()
        (path / "state").write_text("x")
        commit(path, step=step, writer=Writer(1, 1), identity="x", layout={})
    whole = checkpoints.digest_file

    def fail(path: Path) -> str:
        if "step-000004.001-01/" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return whole(path)

    monkeypatch.setattr(checkpoints, "digest_file", fail)
    with pytest.raises(StorageError, match="nothing older is taken in its place") as caught:
        choose(tmp_path, identity="x")
    move_away(caught.value)
    found = choose(tmp_path, identity="x").checkpoint
    assert found is not None
    assert found.step == 2


HOLD = "import sys, time; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"


@pytest.mark.skipif(not shutil.which("fuser"), reason="fuser is of the package psmisc")
def test_who_holds_a_lock_is_found_with_the_command_that_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "a name with blanks.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StorageError) as caught, held_lock(path, timeout_s=0.0, what="the merge"):
            pass
        command = str(caught.value).split("`")[1]
        found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert found.stdout.split() == [str(holder.pid)]
    finally:
        holder.kill()
        holder.wait()


def test_damaged_answers_are_moved_away_and_evaluated_again(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluation-1"
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("{")
    report = replace(REPORT, path=str(folder))
    with pytest.raises(StorageError) as caught:
        read_samples(report)
    move_away(caught.value)
    assert kept_report(folder) is None
    assert "hyperpod-lora resume run` evaluates again" in str(caught.value)
