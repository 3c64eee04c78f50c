from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError, DataError, ModelError
from steps.evaluate import stage
from steps.evaluate.report import read_samples
from steps.evaluate.stage import evaluate, loss_rows
from steps.protocol.records import PreparedData, Report
from steps.protocol.rundir import RunDir
from steps.settings.config import parse_options, parse_settings
from steps.settings.resolve import resolve
from tests.evaluate.evaluate_data import adapter_record, base_record, merged_record, write_model, write_prepared
from tests.shared.sample_records import plan_of, prepared_of

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

    def run(
        heard: list[tuple[str, int, int]] | None = None,
        *,
        validation: dict[str, Any] | None = None,
        preset_limit: int = 6,
        **settings: Any,
    ) -> Report:
        raw = {"evaluation": settings, "validation": validation or {}}
        plan = resolve(parse_settings(raw), parse_options({"model": "tiny"}))
        preset = plan.dataset.model_copy(update={"max_new_tokens": preset_limit, "score": "auto"})
        return evaluate(
            plan.model_copy(update={"dataset": preset}),
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
    assert report.details["words"] == "exact match 0/3 → 0/3, valid JSON 0/3 → 0/3, answers cut 3/3 → 3/3"
    assert (report.details["cut"], report.details["interval"], report.details["max_new_tokens"]) == ([3, 3], [0, 0], 6)
    assert report.gate.startswith("not passed: no better than the base model: score 0.0% → 0.0%")
    whats = (
        "loss of the base model, samples",
        "answers of the base model, answers",
        "loss of the tuned model, samples",
        "answers of the tuned model, answers",
    )
    counted = [told for told in heard if not told[0].endswith(", tokens")]
    assert counted == [(what, 3, 3) for what in whats]
    assert [told for told in heard if told[0] == "answers of the base model, tokens"] == [
        ("answers of the base model, tokens", tokens, 0) for tokens in range(1, 19)
    ]
    assert Path(report.path).parent == place / "run"
    assert Report.from_dict(json.loads((Path(report.path) / "report.json").read_text())) == report


def test_samples_stand_side_by_side(evaluated: Evaluate) -> None:
    samples = read_samples(evaluated(max_rows=2))
    assert [(row["prompt"], row["reference"]) for row in samples] == [
        ("What is order 0?", ANSWERS[0]),
        ("What is order 1?", ANSWERS[1]),
    ]
    assert all(row["base_answer"] != row["tuned_answer"] for row in samples)


def test_texts_with_line_ends_of_any_kind_are_read_back(
    evaluated: Evaluate, place: Path, loaded: tuple[Any, Any]
) -> None:
    odd = ["a\u2028b", "c\x85d\u2029", "e\x0bf\r\ng\x1c\n"]
    shutil.rmtree(place / "prepared")
    write_prepared(place / "prepared", loaded[1], odd, score="exact_match")
    assert [row["reference"] for row in read_samples(evaluated())] == odd


def test_a_whole_evaluation_is_used_again_without_any_model(evaluated: Evaluate, place: Path) -> None:
    first = evaluated()
    shutil.rmtree(place / "base")
    shutil.rmtree(place / "tuned")
    assert evaluated() == first


def test_the_base_model_is_measured_once_for_all_tuned_models(evaluated: Evaluate, place: Path) -> None:
    first = evaluated()
    shutil.rmtree(place / "base")
    second = evaluated(min_improvement=0.5)
    assert "asked for is +50.0%" in second.gate
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


@pytest.mark.whole
def test_more_samples_are_measured_as_long_as_they_cannot_tell(
    evaluated: Evaluate, place: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "FIRST_ROWS", 2)
    shutil.rmtree(place / "prepared")
    write_prepared(place / "prepared", loaded[1], [f"word {number}" for number in range(9)], score="rouge_l")
    heard: list[tuple[str, int, int]] = []
    monkeypatch.setattr(stage, "tells", lambda base, tuned, **_: len(base) == 4)
    report = evaluated(heard)
    assert report.samples == len(read_samples(report)) == 4
    assert [of for what, _, of in heard if what == "answers of the tuned model, answers"] == [2, 2]
    assert [of for what, _, of in heard if what == "loss of the tuned model, samples"] == [2], (
        "after a training of few steps as many as are asked first"
    )
    monkeypatch.setattr(stage, "tells", lambda *_, **__: False)
    heard.clear()
    assert evaluated(heard, min_improvement=0.1, max_rows=7).samples == 7
    assert [of for what, _, of in heard if what == "answers of the base model, answers"] == [2, 2, 3], (
        "another max_rows, another base"
    )


def test_the_loss_is_of_as_many_rows_as_are_asked_for(evaluated: Evaluate) -> None:
    assert [evaluated(max_loss_rows=rows).loss_samples for rows in (1, 2, 9)] == [1, 2, 3]


@pytest.mark.parametrize(("steps", "asked", "expected"), [(12, 32, 16), (64, 32, 32), (1000, 500, 500), (12, 5, 5)])
def test_after_a_short_training_the_loss_is_of_fewer_rows(steps: int, asked: int, expected: int) -> None:
    plan = plan_of({"evaluation": {"max_loss_rows": asked}})
    assert loss_rows(plan, prepared_of(steps=steps, global_batch=4)) == expected


def test_what_chose_the_adapter_does_not_measure_it(evaluated: Evaluate, place: Path) -> None:
    report = evaluated(validation={"keep": "best"})
    assert (report.samples, report.loss_samples) == (2, 2)
    assert [row["reference"] for row in read_samples(report)] == ANSWERS[1:]
    assert report.details["words"].endswith("measured on other samples than the 1 that the adapter was chosen by")


@pytest.mark.whole
def test_the_length_of_an_answer_follows_from_the_references(
    place: Path, loaded: tuple[Any, Any], evaluated: Evaluate
) -> None:
    assert evaluated(max_new_tokens=3).details["max_new_tokens"] == 3
    shutil.rmtree(place / "prepared")
    long = "word " * 60
    write_prepared(place / "prepared", loaded[1], [*ANSWERS, long])
    tokens = len(loaded[1](f"{long}<|im_end|>", add_special_tokens=False).input_ids)
    assert evaluated(preset_limit=0).details["max_new_tokens"] == math.ceil(1.5 * tokens)


def test_a_score_of_ones_own_is_loaded_from_the_settings_and_measured_anew_when_it_changes(
    evaluated: Evaluate, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place)
    (place / "my_score_of_length.py").write_text("def score(answer, reference):\n    return len(answer) > 2\n")
    first = evaluated(score="my_score_of_length:score")
    assert (first.score_name, first.tuned_score) == ("my_score_of_length:score", 1.0)
    (place / "my_score_of_length.py").write_text("def score(answer, reference):\n    return 0.5\n")
    assert evaluated(score="my_score_of_length:score").path != first.path


def test_prepared_data_names_no_code(evaluated: Evaluate, place: Path, loaded: tuple[Any, Any]) -> None:
    shutil.rmtree(place / "prepared")
    write_prepared(place / "prepared", loaded[1], ANSWERS, score="os:getcwd")
    with pytest.raises(ConfigError, match="name it there or in the data preset"):
        evaluated()
