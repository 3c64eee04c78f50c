"""`hyperpod-lora lineage`: up from a model, down from a digest, and what differs between two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from steps.cli.lineage import is_digest
from tests.cli.cli_harness import call

DATA, BASE = "d" * 64, "ba5e" * 16


def model(root: Path, run: str, **training: Any) -> Path:
    folder = root / "LoraFlow" / run / f"merged-{run}"
    folder.mkdir(parents=True)
    values = {
        "schema": "hyperpod-lora/lineage/1",
        "run": f"LoraFlow/{run}",
        "base": {"name": "tiny", "digest": BASE},
        "data": {"name": "orders", "fingerprint": DATA},
        "training": {"rank": 8, "loss": [2.0, 1.0], **training},
    }
    (folder / "lineage.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    model(tmp_path, "17")
    model(tmp_path, "18", rank=16, note="\x1b[2Jgone")
    return tmp_path


def ask(root: Path, *words: str) -> Result:
    return call("lineage", "--root", str(root), *words)


@pytest.mark.parametrize("by", ["17", "LoraFlow/17", "folder"])
def test_what_made_a_model_is_told_for_a_run_and_for_its_folder_alone(root: Path, by: str) -> None:
    folder = root / "LoraFlow" / "17" / "merged-17"
    told = ask(root, str(folder) if by == "folder" else by)
    assert told.exit_code == 0, told.output
    assert told.output.splitlines()[0] == str(folder)
    assert f"data.fingerprint  {DATA}" in told.output
    assert "training.loss     [2.0, 1.0]" in told.output


def test_as_json_it_is_the_lineage_itself(root: Path) -> None:
    assert json.loads(ask(root, "17", "--json").output)["data"]["fingerprint"] == DATA


def test_the_models_made_from_a_digest_are_found(root: Path) -> None:
    lines = ask(root, DATA[:9]).output.splitlines()
    assert [line.split()[0] for line in lines] == ["LoraFlow/17", "LoraFlow/18"]
    assert all("(data.fingerprint)" in line for line in lines)
    assert [row["as"] for row in json.loads(ask(root, BASE, "--json").output)] == [["base.digest"]] * 2


def test_what_differs_is_shown_side_by_side_and_controls_no_terminal(root: Path) -> None:
    told = ask(root, "17", "--diff", "18").output
    assert "training.rank  8  →  16" in told
    assert "training.note  –  →  ␛[2Jgone" in told
    assert "data" not in told
    assert json.loads(ask(root, "17", "--diff", "18", "--json").output)["training.rank"] == ["8", "16"]
    assert ask(root, "17", "--diff", "17").output == "nothing differs\n"


def test_what_is_not_there_is_said(root: Path, tmp_path: Path) -> None:
    (tmp_path / "LoraFlow" / "19" / "train-x").mkdir(parents=True)
    assert "no run '99'" in ask(root, "99").output
    assert "has no merged model yet" in ask(root, "19").output
    assert f"no model below {root} was made from {'e' * 64}" in ask(root, "e" * 64).output


def test_a_damaged_lineage_is_left_out_of_a_search_and_named(root: Path) -> None:
    (root / "LoraFlow" / "17" / "merged-17" / "lineage.json").write_text("{")
    told = ask(root, DATA)
    assert "left out: " in told.output
    assert "LoraFlow/18" in told.output
    assert ask(root, "17").exit_code == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("abc1234", True), ("ABC1234", True), ("1234567", False), ("abc", False), ("xyz1234", False)]
)
def test_a_digest_is_told_from_a_run(text: str, expected: bool) -> None:
    assert is_digest(text) is expected


def test_a_run_whose_files_are_elsewhere_is_looked_up_in_metaflows_records(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = {"LoraFlow/argo-loraflow-x": {"run": "LoraFlow/argo-loraflow-x", "training": {"rank": 2}}}
    monkeypatch.setattr("steps.flow.metaflow_internals.kept_lineage", records.get)
    told = ask(root, "argo-loraflow-x")
    assert "training.rank  2" in told.output
    assert "training.rank" in ask(root, "17", "--diff", "LoraFlow/argo-loraflow-x").output
    assert "no run 'absent'" in ask(root, "absent").output
