"""The door of the room: base and tuned model on the held-out samples → a Report, with a gate.

Called by the flow's `evaluate` step. The stage only says whether the gate is passed; what follows from it is the flow's
business. Files, in `evaluation-<identity>/`: report.json (the record) and samples.jsonl (every prompt, both answers, scores).
The base model's results lie beside it, since they serve every tuned model on the same data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.errors import DataError, StorageError
from steps.evaluate.loss import perplexity
from steps.evaluate.measure import Measured, Progress, Questions, measure, read_questions
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

FORMAT = 1
"""Of the way things are measured; another number makes earlier evaluations be done again."""
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
    """Measure both models, unless this was done before, and write the report. `progress(what, done, of)` in samples.

    Raises:
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
    questions = _questions(plan, prepared)
    say = progress or _silent
    before = _base_results(plan, base, questions, run.path / f"evaluation-base-{identity_of(asked)}.json", say)
    after = _measure(plan, Path(merged.path), questions, "tuned", say)
    parents = {"base": base.digest, "prepared": prepared.digest, "adapter": adapter.digest, "merged": merged.digest}
    with new_directory(folder) as beside:
        samples = list(_samples(questions, before, after))
        (beside / SAMPLES).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples), "utf-8")
        report = _report(
            identity, folder, questions, (before, after), gate=gate, parents=parents, samples_digest=digest_of(samples)
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


def judge(base_score: float, tuned_score: float, *, min_improvement: float) -> tuple[bool, str]:
    """The gate: (whether it is passed, the rule and the outcome in words)."""
    passed = tuned_score >= base_score + min_improvement - 1e-9  # sums of thirds and tenths
    return passed, (
        f"{'passed' if passed else 'not passed'}: the tuned model's score must be at least the base model's "
        f"{base_score:.1%}{f' {min_improvement:+.1%}' if min_improvement else ''}, and is {tuned_score:.1%}"
    )


def _asked(plan: Plan, base: BaseModel, prepared: PreparedData) -> dict[str, Any]:
    """What decides the base model's results."""
    return {
        "format": FORMAT,
        "base": base.digest,
        "prepared": prepared.digest,
        "score": prepared.score,
        "precision": plan.training.precision,
        "max_new_tokens": plan.dataset.max_new_tokens,
        "max_rows": plan.settings.evaluation.max_rows,
        "max_loss_rows": plan.settings.evaluation.max_loss_rows,
    }


def _questions(plan: Plan, prepared: PreparedData) -> Questions:
    questions = read_questions(
        Path(prepared.path),
        score=prepared.score,
        max_rows=plan.settings.evaluation.max_rows,
        max_loss_rows=plan.settings.evaluation.max_loss_rows,
        max_new_tokens=plan.dataset.max_new_tokens,
    )
    if not questions.held_out:
        raise DataError(f"{prepared.path} holds no held-out sample: raise --validation-fraction or give more data")
    return questions


def _measure(plan: Plan, folder: Path, questions: Questions, name: str, say: Progress) -> Measured:
    return measure(
        folder,
        questions,
        precision=plan.training.precision,
        batch_size=plan.settings.evaluation.batch_size,
        name=name,
        progress=say,
    )


def _base_results(plan: Plan, base: BaseModel, questions: Questions, kept: Path, say: Progress) -> Measured:
    if kept.is_file():
        try:
            return Measured.from_dict(read_json(kept))
        except (StorageError, TypeError, KeyError):
            logger.warning("%s is damaged: the base model is measured again", kept)
    measured = _measure(plan, Path(base.path), questions, "base", say)
    write_json(kept, measured.to_dict())
    return measured


def _samples(questions: Questions, before: Measured, after: Measured) -> Iterator[dict[str, Any]]:
    for sample, base, tuned in zip(questions.held_out, before.answers, after.answers, strict=True):
        yield {
            "prompt": sample.messages[-2]["content"] if len(sample.messages) > 1 else sample.prompt,
            "reference": sample.reference,
            "base_answer": base.text,
            "tuned_answer": tuned.text,
            "base_score": base.score,
            "tuned_score": tuned.score,
            "base_exact": base.exact,
            "tuned_exact": tuned.exact,
            "messages": list(sample.messages),
        }


def _report(
    identity: str,
    folder: Path,
    questions: Questions,
    measured: tuple[Measured, Measured],
    *,
    gate: float,
    parents: dict[str, str],
    samples_digest: str,
) -> Report:
    before, after = measured
    passed, words = judge(before.score, after.score, min_improvement=gate)
    return Report(
        path=str(folder),
        identity=identity,
        digest=digest_of([samples_digest, before.loss, after.loss, passed]),
        score_name=questions.score,
        samples=len(questions.held_out),
        base_score=before.score,
        tuned_score=after.score,
        loss_samples=len(questions.loss_samples),
        base_loss=before.loss,
        tuned_loss=after.loss,
        base_perplexity=perplexity(before.loss),
        tuned_perplexity=perplexity(after.loss),
        gate_passed=passed,
        gate=words,
        details=_details(questions.score, before, after),
        parents=parents,
    )


def _details(score: str, before: Measured, after: Measured) -> dict[str, Any]:
    """Counts and times that have no field of their own, and the counts in words."""
    count = len(after.answers)
    counted = {"exact match": [sum(answer.exact for answer in measured.answers) for measured in (before, after)]}
    if score in VALID_FORMS:
        counted[VALID_FORMS[score]] = [
            sum(bool(answer.valid) for answer in measured.answers) for measured in (before, after)
        ]
    return {
        "words": ", ".join(f"{what} {base}/{count} → {tuned}/{count}" for what, (base, tuned) in counted.items()),
        "counts": counted,
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
