"""The sources of a mixture, each with its own score and loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.evaluate.loss import mean_loss, mean_of, sums_by_source
from steps.evaluate.stage import evaluate
from steps.flow.cards.evaluate import by_source
from steps.protocol.prepared import HELD_OUT
from steps.protocol.records import PreparedData
from steps.protocol.rundir import RunDir
from steps.settings.catalog import DatasetPreset, Part
from steps.settings.config import parse_options, parse_settings
from steps.settings.resolve import resolve
from tests.evaluate.evaluate_data import (
    adapter_record,
    base_record,
    merged_record,
    target_sample,
    token_rows,
    write_prepared,
)

SOURCES = ["a.jsonl", "b.jsonl", "a.jsonl"]


def test_the_sums_of_each_source_make_up_the_whole_loss(loaded: tuple[Any, Any]) -> None:
    rows = [target_sample(row, 2) for row in token_rows() if len(row) > 22]
    samples = [replace(row, source="ab"[place % 2]) for place, row in enumerate(rows)]
    sums = sums_by_source(loaded[0], samples)
    assert mean_of(sums.values()) == pytest.approx(mean_loss(loaded[0], rows), abs=1e-6)
    for source in "ab":
        own = [sample for sample in samples if sample.source == source]
        assert mean_of([sums[source]]) == pytest.approx(mean_loss(loaded[0], own), abs=1e-5)


def mixture(**scores: str) -> DatasetPreset:
    parts = [Part(dataset=f"{name}.jsonl", preset=DatasetPreset(score=score)) for name, score in scores.items()]
    return DatasetPreset(name="a-b", mixture=tuple(parts), max_new_tokens=4)


def prepared_mixture(folder: Path, tokenizer: Any, *, score: str) -> PreparedData:
    record = write_prepared(folder, tokenizer, ['{"n": 1}', "two", '{"n": 3}'])
    lines = [json.loads(line) for line in (folder / HELD_OUT).read_text().splitlines()]
    told = [{**line, "source": source} for line, source in zip(lines, SOURCES, strict=True)]
    (folder / HELD_OUT).write_text("".join(json.dumps(line) + "\n" for line in told))
    sources = [{"name": "a.jsonl", "score": score}, {"name": "b.jsonl", "score": "rouge_l"}]
    return replace(record, sources=sources, score=f"{score}, rouge_l")


def test_a_report_has_score_and_loss_of_each_source(tiny: Path, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    plan = resolve(parse_settings(None), parse_options({"model": "tiny"}))
    plan = plan.model_copy(update={"dataset": mixture(a="auto", b="exact_match")})
    prepared = prepared_mixture(tmp_path / "prepared", loaded[1], score="json_fields")
    models = (base_record(tiny), prepared, adapter_record(), merged_record(tiny))
    report = evaluate(plan, *models, RunDir(tmp_path / "run"))
    assert report.score_name == "json_fields, exact_match"
    first, second = report.details["sources"]
    assert [(part["source"], part["samples"], part["score_name"]) for part in (first, second)] == [
        ("a.jsonl", 2, "json_fields"),
        ("b.jsonl", 1, "exact_match"),
    ]
    assert report.base_loss == pytest.approx(report.tuned_loss)
    assert min(first["loss"][0], second["loss"][0]) < report.base_loss < max(first["loss"][0], second["loss"][0])
    assert [row[0] for row in by_source(report)][:2] == ["a.jsonl: JSON fields, 2 samples", "a.jsonl: loss"]
    again = evaluate(plan, *models, RunDir(tmp_path / "run"))
    assert again == report


def test_code_that_only_the_prepared_data_names_is_not_run(tiny: Path, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    plan = resolve(parse_settings(None), parse_options({"model": "tiny"}))
    plan = plan.model_copy(update={"dataset": mixture(a="auto", b="auto")})
    prepared = prepared_mixture(tmp_path / "prepared", loaded[1], score="os:getcwd")
    with pytest.raises(ConfigError, match="in the prepared data only"):
        evaluate(plan, base_record(tiny), prepared, adapter_record(), merged_record(tiny), RunDir(tmp_path / "run"))
