"""The flow's output as one stream: what is shown of it, and what is redrawn on a terminal."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.flow import process
from steps.flow.home import RECORDS, keep_records_in
from steps.flow.metaflow_internals import config_first
from steps.flow.process import PROGRESS, readable, run_flow, show, with_silences
from steps.settings.places import flow_file

TASK = "2026-11-28 13:41:49.535 [1795873235623434/train/3 (pid 13928)] "
TIME = "2026-11-28 13:40:35.628 "
RUN = [
    "Metaflow 2.19.39 executing LoraFlow for user:root\n",
    "Validating your flow...\n",
    "    The graph looks good!\n",
    TIME + "Workflow starting (run-id 17):\n",
    TASK + "Task is starting.\n",
    TASK + "step 1/3 | loss 0.5 | 7 tokens/s | 2 s left\n",
    TASK + "step 2/3 | loss 0.4 | 7 tokens/s | 1 s left\n",
    TIME + "1 task is running: train (1 running; 0 done).\n",
    TIME + "No tasks are waiting in the queue.\n",
    TIME + "compile step has not started\n",
    TIME + "4 steps have not started: merge, compile, evaluate, end.\n",
    TASK + "adapter: /x\n",
    TASK + "Task finished successfully.\n",
    TIME + "Done!\n",
]


def shown(lines: list[str], *, is_terminal: bool) -> str:
    out = io.StringIO()
    show(lines, out, is_terminal=is_terminal)
    return out.getvalue()


def test_a_line_loses_metaflows_prefix_and_noise_is_left_out() -> None:
    assert shown(RUN, is_terminal=False).splitlines() == [
        "run 17",
        "step 1/3 | loss 0.5 | 7 tokens/s | 2 s left",
        "step 2/3 | loss 0.4 | 7 tokens/s | 1 s left",
        "adapter: /x",
    ]


def test_on_a_terminal_progress_stays_on_one_line() -> None:
    text = shown(RUN, is_terminal=True)
    assert "2 s left\r\x1b[Kstep 2/3 | loss 0.4 | 7 tokens/s | 1 s left\nadapter: /x\n" in text
    assert shown([TASK + "merge: [##..] 1/2\n"], is_terminal=True) == "merge: [##..] 1/2\n"


@pytest.mark.parametrize(
    "line",
    [
        "reading and tokenising: [#...] 512/1,320 rows",
        "answers of the base model: 1,640 tokens",
        "step 10: validation: 16/32 rows",
        "loading the model: 2 min 05 s so far",
        "waiting for the workers: 3 h 00 min so far",
        "evaluation: loading a model: 9 s so far",
    ],
)
def test_progress_gives_its_place_to_the_next(line: str) -> None:
    text = shown([TASK + line + "\n", TASK + line + "\n", TASK + "done\n"], is_terminal=True)
    assert text == f"{line}\r\x1b[K{line}\ndone\n"


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "    no prefix at all", "Invalid settings: x"])
def test_what_is_no_noise_is_shown_as_it_is(line: str) -> None:
    assert readable(line + "\n") == line


@pytest.mark.parametrize(("words", "says"), [(["resume"], True), (["run"], False), (["resume", "begun"], False)])
def test_a_resume_that_had_nothing_to_do_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: bool
) -> None:
    flow = tmp_path / "flow.py"
    flow.write_text(
        f"import sys\nprint('LoraFlow/7 cloned!')\nif 'begun' in sys.argv: print({TASK!r} + 'Task is starting.')\n"
    )
    monkeypatch.setattr(process, "flow_file", lambda: flow)
    assert run_flow(words) == 0
    told = capsys.readouterr().out
    assert ("nothing was left to do" in told) is says
    assert "cloned" not in told


def test_a_silence_is_told_with_the_step_that_is_silent() -> None:
    def lines() -> Iterator[str]:
        yield from RUN[:5]
        time.sleep(0.3)
        yield RUN[7]  # nothing that a person sees
        time.sleep(0.3)
        yield RUN[11]

    read = list(with_silences(lines(), quiet_s=0.2))
    told = [line for line in read if line not in RUN]
    assert len(told) >= 2
    assert all(line.startswith("train step: ") and PROGRESS.match(line.rstrip()) for line in told)
    assert [line for line in read if line in RUN] == [*RUN[:5], RUN[7], RUN[11]]
    assert list(with_silences(RUN)) == RUN


def test_a_new_step_s_silence_begins_with_it() -> None:
    def lines() -> Iterator[str]:
        yield TASK + "first\n"
        time.sleep(0.5)
        yield TASK.replace("/train/", "/merge/") + "Task is starting.\n"
        time.sleep(0.3)

    told = [line for line in with_silences(lines(), quiet_s=0.2) if "so far" in line]
    assert [line.partition(" ")[0] for line in told][-1] == "merge"
    assert told[-1] == "merge step: 0 s so far\n"


def test_a_reader_that_has_gone_does_not_end_the_run() -> None:
    out = io.StringIO()
    out.close()
    read = iter(RUN)
    show(read, out, is_terminal=False)
    assert next(read, None) is None  # all of it was read, so that the child never waits for us


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["run", "--config", "a b.yaml", "--seed", "1"], ["--config", "config", "a b.yaml", "run", "--seed", "1"]),
        (["--config", "a.yaml", "run"], ["--config", "config", "a.yaml", "run"]),
        (["run", "--config=a.yaml"], ["--config", "config", "a.yaml", "run"]),
        (["--config", "config", "a.yaml", "run"], ["--config", "config", "a.yaml", "run"]),
        (["run", "--config"], ["run", "--config"]),
        (["run"], ["run"]),
    ],
)
def test_a_config_may_stand_anywhere_and_needs_one_word(given: list[str], wanted: list[str]) -> None:
    assert config_first(given) == wanted


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, True),
        ({RECORDS: "/own"}, False),
        ({"METAFLOW_PROFILE": "work"}, False),
        ({"KUBERNETES_SERVICE_HOST": "x"}, False),
    ],
    ids=["nothing chosen", "a folder of one's own", "a profile", "a pod"],
)
def test_metaflows_records_lie_beside_the_project_unless_something_else_is_chosen(
    tmp_path: Path, environment: dict[str, str], kept: bool
) -> None:
    before = dict(environment)
    keep_records_in(tmp_path, environment)
    assert environment == (before | {RECORDS: str(tmp_path)} if kept else before)


def test_a_folder_that_cannot_be_written_is_no_place_for_records(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    keep_records_in(tmp_path / "no" / "where", environment)
    assert environment == {}


def test_the_flow_is_found() -> None:
    assert flow_file().is_file()
