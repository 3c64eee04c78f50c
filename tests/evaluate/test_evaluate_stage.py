from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError, ModelError
from steps.evaluate.stage import evaluate, judge, read_samples
from steps.protocol.records import PreparedData, Report
from steps.protocol.rundir import RunDir
from steps.settings.config import parse_options, parse_settings
from steps.settings.resolve import resolve
from tests.evaluate.evaluate_data import adapter_record, base_record, merged_record, write_model, write_prepared

ANSWERS = ['{"item": "apple", "quantity": 3}', '{"item": "pear", "quantity": 5}', '{"item": "fig", "quantity": 1}']


@pytest.fixture
def place(tmp_path: Path, tiny: Path, loaded: tuple[Any, Any]) -> Path:
    """A folder with models `base` and `tuned`, and `prepared` data."""
    shutil.copytree(tiny, tmp_path / "base")
    write_model(tmp_path / "tuned", seed=1)
    write_prepared(tmp_path / "prepared", loaded[1], ANSWERS)
    return tmp_path


Evaluate = Callable[..., Report]


@pytest.fixture
def evaluated(place: Path) -> Evaluate:
    """Evaluate what lies in `place`, with these evaluation settings; `heard` gets the progress."""

    def run(heard: list[tuple[str, int, int]] | None = None, **settings: Any) -> Report:
        plan = resolve(parse_settings({"evaluation": settings}), parse_options({"model": "tiny"}))
        return evaluate(
            plan.model_copy(update={"dataset": plan.dataset.model_copy(update={"max_new_tokens": 6})}),
            base_record(place / "base"),
            PreparedData.from_dict(json.loads((place / "prepared" / "manifest.json").read_text())["record"]),
            adapter_record(),
            merged_record(place / "tuned"),
            RunDir(place / "run"),
            progress=lambda *said: heard.append(said) if heard is not None else None,
        )

    return run


def test_the_report_tells_of_both_models_and_its_parents(evaluated: Evaluate, place: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    report = evaluated(heard)
    assert (report.samples, report.loss_samples, report.score_name) == (3, 3, "json_fields")
    assert report.base_loss != report.tuned_loss
    assert report.base_perplexity > 1
    assert report.parents == {
        "base": "base-digest", "adapter": "adapter-digest", "merged": "merged-digest",
        "prepared": json.loads((place / "prepared" / "manifest.json").read_text())["record"]["digest"],
    }  # fmt: skip
    assert report.details["words"] == "exact match 0/3 → 0/3, valid JSON 0/3 → 0/3"
    whats = (
        "loss of the base model",
        "answers of the base model",
        "loss of the tuned model",
        "answers of the tuned model",
    )
    assert heard == [(what, 3, 3) for what in whats]
    assert Path(report.path).parent == place / "run"
    assert Report.from_dict(json.loads((Path(report.path) / "report.json").read_text())) == report


def test_samples_stand_side_by_side(evaluated: Evaluate) -> None:
    samples = read_samples(evaluated(max_rows=2))
    assert [(row["prompt"], row["reference"]) for row in samples] == [
        ("What is order 0?", ANSWERS[0]),
        ("What is order 1?", ANSWERS[1]),
    ]
    assert all(row["base_answer"] != row["tuned_answer"] for row in samples)


def test_a_whole_evaluation_is_used_again_without_any_model(evaluated: Evaluate, place: Path) -> None:
    first = evaluated()
    shutil.rmtree(place / "base")
    shutil.rmtree(place / "tuned")
    assert evaluated() == first


def test_the_base_model_is_measured_once_for_all_tuned_models(evaluated: Evaluate, place: Path) -> None:
    first = evaluated()
    shutil.rmtree(place / "base")
    second = evaluated(min_improvement=0.5)
    assert first.gate_passed
    assert not second.gate_passed
    assert first.path != second.path
    assert (second.base_loss, second.base_score) == (first.base_loss, first.base_score)


@pytest.mark.parametrize("name", ["samples.jsonl", "report.json"])
def test_a_damaged_evaluation_is_set_aside_and_done_again(
    evaluated: Evaluate, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = evaluated()
    (Path(first.path) / name).write_text("{}")
    second = evaluated()
    assert second.to_dict()["tuned_loss"] == first.tuned_loss
    assert len(read_samples(second)) == 3
    assert "is damaged: moved to" in caplog.text


def test_a_damaged_base_result_is_measured_again(evaluated: Evaluate, place: Path) -> None:
    first = evaluated()
    (kept,) = (place / "run").glob("evaluation-base-*.json")
    kept.write_text('{"loss": 1.0, "answers": 7}')
    assert evaluated(min_improvement=0.1).base_loss == first.base_loss


def test_a_damaged_model_is_named_and_nothing_is_left_behind(evaluated: Evaluate, place: Path) -> None:
    (place / "tuned" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"cannot load the model in .*/tuned"):
        evaluated()
    assert [path.name.rpartition("-")[0] for path in (place / "run").iterdir()] == ["evaluation-base"]


def test_nothing_held_out_says_what_to_change(evaluated: Evaluate, place: Path, loaded: tuple[Any, Any]) -> None:
    shutil.rmtree(place / "prepared")
    write_prepared(place / "prepared", loaded[1], [])
    with pytest.raises(DataError, match="raise --validation-fraction"):
        evaluated()


@pytest.mark.parametrize(
    ("base", "tuned", "least", "passed"),
    [
        pytest.param(0.0, 0.9, 0.0, True, id="better"),
        pytest.param(0.5, 0.5, 0.0, True, id="as good as before"),
        pytest.param(0.5, 0.49, 0.0, False, id="worse"),
        pytest.param(0.1, 0.3, 0.2, True, id="just enough, in binary a hair less"),
        pytest.param(0.1, 0.29, 0.2, False, id="better, not enough"),
        pytest.param(0.5, 0.45, -0.1, True, id="a small loss is allowed"),
    ],
)
def test_the_gate(base: float, tuned: float, least: float, passed: bool) -> None:
    found, words = judge(base, tuned, min_improvement=least)
    assert found is passed
    assert words.startswith("passed: " if passed else "not passed: ")
    assert f"{tuned:.1%}" in words
