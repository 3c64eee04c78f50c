"""The door of the room: base and tuned model on the held-out samples → a Report, with a gate.

Called by the flow's `evaluate` step. The stage only says whether the gate is passed; what follows from it is the flow's
business. Files, in `evaluation-<identity>/`: report.json (the record) and samples.jsonl (every prompt, both answers, scores).
The base model's results lie beside it, since they serve every tuned model on the same data.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, DataError, Problem, StorageError
from steps.evaluate.gate import judge, tells
from steps.evaluate.loss import perplexity
from steps.evaluate.measure import Measured, Progress, load_tokenizer, measure, side_by_side
from steps.evaluate.own_score import load_own, source_of
from steps.evaluate.questions import Questions, read_questions, room_for_answers
from steps.evaluate.scores import VALID_FORMS
from steps.protocol.records import (
    Adapter,
    BaseModel,
    MergedModel,
    PreparedData,
    Report,
    digest_file,
    digest_of,
    identity_of,
)
from steps.protocol.rundir import RunDir, new_directory, read_json, write_json
from steps.protocol.set_aside import set_aside
from steps.settings.plan import Plan

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of the way things are measured; another number makes earlier evaluations be done again."""
FIRST_ROWS = 32
"""Samples measured at first; as long as they cannot tell, twice as many. 32 show a difference of a quarter with 80 % power at the
95 % level, where a third of the answers differ; 128 show an eighth."""
REPORT, SAMPLES = "report.json", "samples.jsonl"


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
    if folder.exists():
        if report := _reusable(folder):
            return report
        aside = set_aside(folder, hidden=True)
        logger.warning("the evaluation in %s is damaged: moved to %s, and done again", folder, aside.name)
    questions = _questions(plan, base, prepared)
    kept = run.path / f"evaluation-base-{identity_of(asked)}.json"
    before, after = _measure_both(plan, (base, merged), questions, kept, progress or _silent)
    questions = replace(questions, held_out=questions.held_out[: len(after.answers)])
    parents = {"base": base.digest, "prepared": prepared.digest, "adapter": adapter.digest, "merged": merged.digest}
    with new_directory(folder) as beside:
        samples = list(side_by_side(questions, before, after))
        (beside / SAMPLES).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples), "utf-8")
        report = _report(
            identity,
            folder,
            questions,
            (before, after),
            gate=gate,
            parents=parents,
            samples_digest=digest_of(samples),
            words=_about_samples(plan, prepared),
        )
        write_json(beside / REPORT, {**report.to_dict(), "samples_sha256": digest_file(beside / SAMPLES)})
    return report


def read_samples(report: Report) -> list[dict[str, Any]]:
    """The lines of samples.jsonl: prompt, reference, base_answer, tuned_answer, and both scores.

    Raises:
        StorageError: the file is missing or damaged.
    """
    path = Path(report.path) / SAMPLES
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path} ({error}): remove its folder and evaluate again") from error


def check_score(plan: Plan) -> None:
    """Load the score of one's own, if the plan names one, before anything costs.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if ":" in (name := score_name(plan)):
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
        what = f"is {prepared!r} in the prepared data only: name it there or in the data preset to have it run"
        raise ConfigError([Problem("evaluation.score", what)])
    return prepared


def _asked(plan: Plan, base: BaseModel, prepared: PreparedData) -> dict[str, Any]:
    """What decides the base model's results."""
    evaluation = plan.settings.evaluation
    name = score_name(plan, prepared.score)
    source = source_of(name) if ":" in name else None
    return {
        "format": FORMAT,
        "base": base.digest,
        "prepared": prepared.digest,
        "score": name,
        "score_source": digest_file(source) if source else "",
        "precision": plan.training.precision,
        "max_new_tokens": evaluation.max_new_tokens or plan.dataset.max_new_tokens,
        "first_row": plan.evaluation_start(prepared.validation_samples),
        "max_rows": evaluation.max_rows,
        "max_loss_rows": evaluation.max_loss_rows,
    }


def _questions(plan: Plan, base: BaseModel, prepared: PreparedData) -> Questions:
    evaluation = plan.settings.evaluation
    questions = read_questions(
        Path(prepared.path),
        score=score_name(plan, prepared.score),
        first=plan.evaluation_start(prepared.validation_samples),
        max_rows=evaluation.max_rows,
        max_loss_rows=evaluation.max_loss_rows,
    )
    if not questions.held_out:
        raise DataError(f"{prepared.path} holds no held-out sample: raise --validation-fraction or give more data")
    most = evaluation.max_new_tokens or plan.dataset.max_new_tokens
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


def _report(
    identity: str,
    folder: Path,
    questions: Questions,
    measured: tuple[Measured, Measured],
    *,
    gate: float,
    parents: dict[str, str],
    samples_digest: str,
    words: str,
) -> Report:
    before, after = measured
    verdict = judge(before.scores, after.scores, min_improvement=gate)
    return Report(
        path=str(folder),
        identity=identity,
        digest=digest_of([samples_digest, before.loss, after.loss, verdict.passed]),
        score_name=questions.score,
        samples=len(questions.held_out),
        base_score=before.score,
        tuned_score=after.score,
        loss_samples=len(questions.loss_samples),
        base_loss=before.loss,
        tuned_loss=after.loss,
        base_perplexity=perplexity(before.loss),
        tuned_perplexity=perplexity(after.loss),
        gate_passed=verdict.passed,
        gate=verdict.words,
        details={
            **_details(questions.score, before, after, words),
            "interval": [verdict.difference.low, verdict.difference.high],
            "differing": verdict.difference.differing,
            "max_new_tokens": questions.max_new_tokens,
        },
        parents=parents,
    )


def _details(score: str, before: Measured, after: Measured, words: str) -> dict[str, Any]:
    """Counts and times that have no field of their own, and the counts in words."""
    count = len(after.answers)
    counted = {"exact match": [sum(answer.exact for answer in measured.answers) for measured in (before, after)]}
    if score in VALID_FORMS:
        counted[VALID_FORMS[score]] = [
            sum(bool(answer.valid) for answer in measured.answers) for measured in (before, after)
        ]
    cut = [before.cut, after.cut]
    if any(cut):
        counted["answers cut"] = cut
    told = [f"{what} {base}/{count} → {tuned}/{count}" for what, (base, tuned) in counted.items()]
    return {
        "words": ", ".join([*told, *([words] if words else [])]),
        "counts": counted,
        "cut": cut,
        "generated_tokens": [before.tokens, after.tokens],
        "generate_s": [before.generate_s, after.generate_s],
        "loss_s": [before.loss_s, after.loss_s],
    }


def _reusable(folder: Path) -> Report | None:
    """The report in a folder whose files are whole."""
    try:
        raw = read_json(folder / REPORT)
        report = Report.from_dict({**raw, "path": str(folder)})
        return report if digest_file(folder / SAMPLES) == raw["samples_sha256"] else None
    except (StorageError, ValueError, KeyError, OSError):
        return None


def _silent(what: str, done: int, of: int) -> None:
    """Say nothing."""
