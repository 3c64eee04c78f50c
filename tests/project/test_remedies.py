"""Every remedy that an error prints works as it is printed: its commands and options exist, and doing it helps."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import steps
from steps.cli.main import COMMANDS, main
from steps.errors import JobError, StorageError
from steps.job import messages
from steps.job.classify import Failure
from steps.job.retry import GiveUp
from steps.protocol.failure_class import FailureClass
from steps.settings.options import OPTIONS
from tests.job.job_fakes import make_job
from tests.job.test_supervise import Stage, fail_with, hang_at, succeed

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
        assert f"`--continue-from {tmp_path}`" in remedy or "new run, without --continue-from" in remedy
    is_resumed = "Then `resume` goes on" in remedy
    assert is_resumed != bool(kind.meaning.options)


def move_away(stage: Stage, error: Exception) -> None:
    """Do what the message prints in backticks."""
    command = str(error).split("`")[1]
    assert command.startswith("mv ")
    subprocess.run(command.split(), check=True)


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
    move_away(stage, caught.value)
    assert stage.run(retry_permanent=True).step == 10
    assert [item["number"] for item in stage.history["attempts"]] == [3]
    assert stage.launcher.calls.count("create 3") == 1


def test_resume_after_a_verdict_goes_on(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("user", 64, saves=4), succeed)
    with pytest.raises(JobError, match="Then `resume` goes on"):
        stage.run()
    assert stage.run(retry_permanent=True).step == 10
