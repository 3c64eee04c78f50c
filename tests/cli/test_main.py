"""The command line as a whole: its list of commands, and the words of mistakes on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from steps.cli.main import COMMANDS, PrintedError
from steps.errors import StorageError
from tests.cli.cli_harness import call


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


def test_an_error_keeps_its_headline() -> None:
    assert PrintedError(StorageError("full")).headline == "Storage failed"


def test_help_names_the_commands_and_imports_none_of_them() -> None:
    shown = call("--help").output
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    program = (
        "import sys; from steps.cli.main import main; main(['--help'], standalone_mode=False);"
        "print([name for name in sys.modules if name in ('steps.cli.status', 'pydantic', 'yaml')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage: " in call(command, "--help").output


def test_jobspec_takes_the_flows_own_options() -> None:
    shown = call("jobspec", "--help").output
    assert "--lora-rank" in shown
    assert "--continue-from" not in shown
    assert "No such option '--lora-rnak'" in call("jobspec", "--lora-rnak", "4").output
