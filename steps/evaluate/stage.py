"""The door of the room: base and tuned model on the held-out samples → a Report, with a gate.

Called by the flow's `evaluate` step. The stage only says whether the gate is passed; what follows from it is the flow's
business. Files, in `evaluation-<identity>/`: report.json (the record) and samples.jsonl (every prompt, both answers, scores).
The base model's results lie beside it, since they serve every tuned model on the same data.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, DataError, Problem, StorageError
from steps.evaluate.gate import tells
from steps.evaluate.measure import Measured, Progress, load_tokenizer, measure
from steps.evaluate.questions import Questions, read_questions, room_for_answers
from steps.evaluate.report import Compared, kept_report, write_report
from steps.evaluate.scoring.own_score import load_own, source_of
from steps.protocol.records import (
    Adapter,
    BaseModel,
    MergedModel,
    PreparedData,
    Report,
    digest_file,
    identity_of,
)
from steps.protocol.rundir import RunDir, read_json, write_json
from steps.settings.mixture import source_names
from steps.settings.plan import Plan

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of the way things are measured; another number makes earlier evaluations be done again."""
CODE_IN_DATA = "is {!r} in the prepared data only: name it there or in the data preset to have it run"
FIRST_ROWS = 16
"""Samples measured at first; as long as they cannot tell, twice as many. A clear difference shows in 16 (simulated: half a
percent of equal models pass for different at that look); where a third of the answers differ, 32 show a difference of a quarter
with 80 % power at the 95 % level, 128 an eighth."""

TRAINED_PER_LOSS_ROW = 8
"""Rows that were trained on, for each whose loss is measured in the end."""


def evaluate(
    plan: Plan,
    base: BaseModel,
    prepared: PreparedData,
    adapter: Adapter,
    merged: MergedModel,
    run: RunDir,
    *,
    progress: Progress | None = None,
) -> Report:
    """Measure both models, unless this was done before, and write the report. `progress`: see `measure`.

    Raises:
        ConfigError: the score of one's own cannot be loaded, or failed.
        DataError: nothing was held out.
        ModelError: a model cannot be loaded.
        StorageError: prepared data is damaged, the disk is full.
    """
    asked = _asked(plan, base, prepared)
    gate = plan.settings.evaluation.min_improvement
    identity = identity_of({"asked": asked, "merged": merged.digest, "gate": gate})
    folder = run.evaluation(identity)
    if report := kept_report(folder):
        return report
    questions = _questions(plan, base, prepared)
    kept = run.path / f"evaluation-base-{identity_of(asked)}.json"
    before, after = _measure_both(plan, (base, merged), questions, kept, progress or _silent)
    questions = replace(questions, held_out=questions.held_out[: len(after.answers)])
    parents = {"base": base.digest, "prepared": prepared.digest, "adapter": adapter.digest, "merged": merged.digest}
    words = _about_samples(plan, prepared)
    return write_report(folder, Compared(questions, before, after, gate, words), identity=identity, parents=parents)


def check_score(plan: Plan) -> None:
    """Load the score of one's own, if the plan names one, before anything costs.

    Raises:
        ConfigError: it cannot be loaded.
    """
    for name in {score_name(plan), *_scores_of(plan).values()}:
        if ":" in name:
            load_own(name)


def score_name(plan: Plan, prepared: str = "") -> str:
    """The score's name: the Config's, else the data preset's, else what `prepare` found. Code of one's own is never named by what
    lies in a file of data.

    Raises:
        ConfigError: the prepared data names code that neither Config nor preset names.
    """
    for name in (plan.settings.evaluation.score, plan.dataset.score):
        if name != "auto":
            return name
    if ":" in prepared:
        raise ConfigError([Problem("evaluation.score", CODE_IN_DATA.format(prepared))])
    return prepared


def _scores_of(plan: Plan, prepared: PreparedData | None = None) -> dict[str, str]:
    """Of a mixture that has not one score for all: source → its preset's score, else what `prepare` found.

    Raises:
        ConfigError: the prepared data names code that no preset names.
    """
    if score_name(plan) or not plan.dataset.mixture:
        return {}
    found = {part["name"]: part["score"] for part in prepared.sources} if prepared else {}
    for name, preset in zip(source_names(plan.dataset), plan.dataset.sources, strict=True):
        if preset.score != "auto":
            found[name] = preset.score
        elif ":" in found.get(name, ""):
            raise ConfigError([Problem("evaluation.score", CODE_IN_DATA.format(found[name]))])
    return found


def _score_names(plan: Plan, prepared: PreparedData, scores: Mapping[str, str]) -> str:
    """Of all sources, or the one score that there is."""
    return ", ".join(dict.fromkeys(scores.values())) or score_name(plan, prepared.score)


def _asked(plan: Plan, base: BaseModel, prepared: PreparedData) -> dict[str, Any]:
    """What decides the base model's results."""
    evaluation = plan.settings.evaluation
    scores = _scores_of(plan, prepared)
    name = _score_names(plan, prepared, scores)
    sources = [source for one in scores.values() or [name] if ":" in one and (source := source_of(one))]
    return {
        "format": FORMAT,
        "base": base.digest,
        "prepared": prepared.digest,
        "score": name,
        "score_source": ", ".join(map(digest_file, sources)),
        "precision": plan.training.precision,
        "max_new_tokens": evaluation.max_new_tokens or plan.dataset.max_new_tokens,
        "first_row": plan.evaluation_start(prepared.validation_samples),
        "max_rows": evaluation.max_rows,
        "max_loss_rows": loss_rows(plan, prepared),
    }


def loss_rows(plan: Plan, prepared: PreparedData) -> int:
    """Held-out rows whose loss is measured: after a short training fewer, so that measuring takes little of its time."""
    trained = prepared.steps * prepared.global_batch
    return min(plan.settings.evaluation.max_loss_rows, max(FIRST_ROWS, trained // TRAINED_PER_LOSS_ROW))


def _questions(plan: Plan, base: BaseModel, prepared: PreparedData) -> Questions:
    evaluation, scores = plan.settings.evaluation, _scores_of(plan, prepared)
    questions = read_questions(
        Path(prepared.path),
        score=_score_names(plan, prepared, scores),
        first=plan.evaluation_start(prepared.validation_samples),
        max_rows=evaluation.max_rows,
        max_loss_rows=loss_rows(plan, prepared),
    )
    if not questions.held_out:
        raise DataError(f"{prepared.path} holds no held-out sample: raise --validation-fraction or give more data")
    most = evaluation.max_new_tokens or plan.dataset.max_new_tokens
    questions = replace(questions, scores=scores)
    return replace(questions, max_new_tokens=most or room_for_answers(questions, load_tokenizer(Path(base.path))))


def _measure_both(
    plan: Plan, models: tuple[BaseModel, MergedModel], questions: Questions, kept: Path, say: Progress
) -> tuple[Measured, Measured]:
    """Both models on as many samples as it takes to tell them apart, if there are as many. One model is in memory at a time."""
    base, merged = models
    least = plan.settings.evaluation.min_improvement
    count, after = min(FIRST_ROWS, len(questions.held_out)), None
    while True:
        before = _base_results(plan, base, questions, count, kept, say)
        after = _measure(plan, Path(merged.path), questions, count, after, "tuned", say)
        if count == len(questions.held_out) or tells(before.scores, after.scores, min_improvement=least):
            return before, after
        count = min(2 * count, len(questions.held_out))


def _measure(
    plan: Plan, folder: Path, questions: Questions, count: int, known: Measured | None, name: str, say: Progress
) -> Measured:
    """The first `count` answers, of which some may be known."""
    done = len(known.answers) if known else 0
    asked = questions.part(done, count)
    found = measure(
        folder,
        asked if known else replace(asked, loss_samples=questions.loss_samples),
        precision=plan.training.precision,
        batch_size=plan.settings.evaluation.batch_size,
        name=name,
        progress=say,
    )
    return known.and_more(found) if known else found


def _base_results(plan: Plan, base: BaseModel, questions: Questions, count: int, kept: Path, say: Progress) -> Measured:
    """The same for the base model, whose results serve every tuned model on the same data."""
    known = None
    if kept.is_file():
        try:
            known = Measured.from_dict(read_json(kept))
        except (StorageError, TypeError, KeyError):
            logger.warning("%s is damaged: the base model is measured again", kept)
    if known is None or len(known.answers) < count:
        known = _measure(plan, Path(base.path), questions, count, known, "base", say)
        write_json(kept, known.to_dict())
    return known.first(count)


def _about_samples(plan: Plan, prepared: PreparedData) -> str:
    """What a reader should know of the samples, where the adapter was chosen by its loss on held-out ones."""
    if not plan.chooses_by_validation:
        return ""
    first = plan.evaluation_start(prepared.validation_samples)
    return (
        f"measured on other samples than the {first} that the adapter was chosen by"
        if first
        else "the adapter was chosen by the samples that are measured, since too few are held out: raise --validation-fraction"
    )


def _silent(what: str, done: int, of: int) -> None:
    """Say nothing."""
