"""`hyperpod-lora run` as a person types it: mistakes are told before Metaflow starts; the flow then does what its options say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steps.errors import ConfigError
from steps.settings.config import parse_settings
from steps.settings.options import GROUPS, OPTIONS
from tests.cli.cli_harness import call

ROOT = Path(__file__).resolve().parents[2]


def test_every_option_stands_under_one_heading_and_its_words_are_named() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(OPTIONS)
    shown = call("run", "--help").output
    assert all(f"--{name.replace('_', '-')} " in shown for name in OPTIONS)
    assert "auto|lora|rslora|dora" in shown
    presets = " ".join(shown.partition("Models:")[2].split())
    assert "smollm2-135m learning-rate 0.001, lora-rank 8," in presets
    assert "any other learning-rate 0.0002, lora-rank 16, lora-targets all-linear, sequence-length 1024" in presets
    assert "max-steps 12" in presets.partition("Data sets:")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora-rnk", "3"], ["--lora-rnk", "did you mean '--lora-rank'"]),
        (["--lora-rank", "x", "--seed", "-1"], ["--lora-rank", "got 'x'", "--seed", "must be >= 0"]),
        (["--model", "lama3"], ["unknown preset 'lama3'", "llama3"]),
        (["--max-steps", "5", "--epochs", "2"], ["give either --max-steps or --epochs"]),
        (["--columns", "prompt"], ["expected part=column pairs", "prompt=text,answer=label"]),
        (["--dataset", "/no/such.jsonl"], ["no such file or folder"]),
        (["--continue-from", "17", "--lora-rank", "x"], ["--continue-from: no run found", "--lora-rank", "got 'x'"]),
    ],
)
def test_a_mistake_is_told_before_metaflow_starts(
    words: list[str], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.flow.process.run_flow", lambda *_, **__: pytest.fail("the flow was started"))
    result = call("run", *words)
    assert result.exit_code == 1
    assert all(word in result.output for word in said), result.output


def test_all_mistakes_are_told_at_once_whatever_they_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.flow.process.run_flow", lambda *_, **__: pytest.fail("the flow was started"))
    (tmp_path / "rows.jsonl").write_text('{"frage": "1 + 1?", "antwort": "2"}\n')
    (tmp_path / "template.jinja").write_text(
        "{% for message in messages %}\n{{ message.content | nonsense }}\n{% endfor %}"
    )
    (tmp_path / "config.yaml").write_text("retry: {max_attempts: 0}\nlauncher: {kinds: local}\n")
    (tmp_path / "model.yaml").write_text("lora_rnk: 3\n")
    words = {
        "config": tmp_path / "config.yaml",
        "model": tmp_path / "model.yaml",
        "dataset": tmp_path / "rows.jsonl",
        "lora-rank": "-1",
        "chat-template": tmp_path / "template.jinja",
        "chat-template-kwargs": "{thinking: no}",
        "max-steps": 5,
        "epochs": 2,
        "processes": "two",
        "sharding": "fsdp",
    }
    result = call("run", *(f"--{name}={value}" for name, value in words.items()))
    assert result.exit_code == 1
    for said in (
        "retry.max_attempts: must be >= 1, got 0",
        "launcher.kinds: unknown setting (did you mean 'kind'",
        "model.yaml: lora_rnk: unknown setting (did you mean 'lora_rank'",
        "--lora-rank: must be >= 0, got '-1'",
        "--processes: input should be a valid integer",
        "rows.jsonl:1: its columns fit no known shape: found antwort, frage",
        "template.jinja:2 is not valid Jinja: No filter named 'nonsense'",
        "--chat-template-kwargs: is not valid JSON",
        "--epochs: give either --max-steps or --epochs",
    ):
        assert result.output.count(said) == 1, (said, result.output)
    assert "--sharding" not in result.output, "fsdp of how many processes is not known"


def test_what_is_given_reaches_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("steps.flow.process.run_flow", lambda words, config=None: seen.append((words, config)) or 3)
    config = tmp_path / "my config.yaml"
    config.write_text("run: {model: tiny, max-steps: 7}\n")
    result = call("run", "--config", str(config), "--dry-run", "--seed", "5", "--tag", "night")
    assert result.exit_code == 3
    assert seen == [(["run", "--dry-run=True", "--seed=5", "--tag=night"], config)]


def test_resume_names_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("steps.flow.process.run_flow", lambda words: seen.append(words) or 0)
    call("resume", "LoraFlow/17")
    call("resume")
    assert seen == [["resume", "--origin-run-id", "17"], ["resume"]]


def test_options_in_a_config_are_checked_with_the_rest_of_it() -> None:
    assert parse_settings({"run": {"lora-rank": 4, "dry_run": True}}).run == {"lora_rank": 4, "dry_run": True}
    with pytest.raises(ConfigError, match=r"run\.lora_rnk: unknown setting .did you mean 'lora_rank'"):
        parse_settings({"run": {"lora_rnk": 4}})
    with pytest.raises(ConfigError, match=r"run\.seed: must be >= 0, got -1"):
        parse_settings({"run": {"seed": -1}})
    with pytest.raises(ConfigError, match=r"run: .*got 3"):
        parse_settings({"run": 3})


@pytest.mark.whole
@pytest.mark.timeout(240)
def test_a_dry_run_with_options_from_a_config_of_ones_own(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"frage": "1 + 1?", "antwort": "2"}\n' * 2 + '{"frage": "2 + 2?", "antwort": "4"}\n'
    )
    (tmp_path / "mine.yaml").write_text("path: rows.jsonl\nmax_steps: 3\n")
    config = tmp_path / "my config.yaml"
    config.write_text(
        f"storage: {{root: {tmp_path / 'runs'}, cache: {tmp_path / 'cache'}, min_free_gib: 0}}\n"
        f"run: {{model: tiny, dataset: {tmp_path / 'mine.yaml'}, columns: 'question=frage,answer=antwort', global_batch: 1,"
        " micro_batch: 1, dry_run: true, validation_fraction: 0.4}\n"
    )
    command = [sys.executable, "-m", "steps.cli", "run", "--config", str(config), "--sequence-length", "128"]
    home = {name: value for name, value in clean_environment.items() if name not in ("USER", "METAFLOW_USER")}
    done = subprocess.run(
        command, cwd=tmp_path, env=home | {"HOME": os.environ["HOME"]}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 steps of 1 rows" in done.stdout
    assert "of up to 128 tokens" in done.stdout
    assert "pid" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("dry run: nothing was trained")
