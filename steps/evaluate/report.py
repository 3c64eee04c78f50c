"""What was measured becomes a report: `evaluation-<identity>/` with report.json (the record) and samples.jsonl beside it.

Called by `stage`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.evaluate.gate import Verdict, judge
from steps.evaluate.loss import perplexity
from steps.evaluate.measure import Measured, side_by_side
from steps.evaluate.questions import Questions
from steps.evaluate.scoring.scores import VALID_FORMS
from steps.plain_text import move_away
from steps.protocol.records import Report, digest_file, digest_of
from steps.protocol.run_options import how_to_resume
from steps.protocol.rundir import new_directory, read_json, write_json
from steps.protocol.set_aside import set_aside

logger = logging.getLogger(__name__)

REPORT, SAMPLES = "report.json", "samples.jsonl"


@dataclass(frozen=True, slots=True)
class Compared:
    """Both models on the same questions."""

    questions: Questions
    before: Measured
    after: Measured
    least: float
    """The gate: by how much the tuned model has to be better."""
    words: str
    """What a reader should know of the samples."""


def write_report(folder: Path, found: Compared, *, identity: str, parents: dict[str, str]) -> Report:
    """Report and samples in a new folder.

    Raises:
        StorageError: the disk is full.
    """
    with new_directory(folder) as beside:
        samples = list(side_by_side(found.questions, found.before, found.after))
        (beside / SAMPLES).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples), "utf-8")
        report = _report(folder, found, identity, parents, digest_of(samples))
        write_json(beside / REPORT, {**report.to_dict(), "samples_sha256": digest_file(beside / SAMPLES)})
    return report


def kept_report(folder: Path) -> Report | None:
    """The report that lies there whole; what is damaged is set aside."""
    if not folder.exists():
        return None
    if report := _whole_report(folder):
        return report
    aside = set_aside(folder, hidden=True)
    logger.warning("the evaluation in %s is damaged: moved to %s, and done again", folder, aside.name)
    return None


def read_samples(report: Report) -> list[dict[str, Any]]:
    """The lines of samples.jsonl: prompt, reference, base_answer, tuned_answer, and both scores.

    Raises:
        StorageError: the file is missing or damaged.
    """
    path = Path(report.path) / SAMPLES
    try:
        with path.open(encoding="utf-8") as lines:  # which end in \n alone: a text may hold U+2028 and its like
            return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        again = f"`{move_away(path.parent)}`, then `{how_to_resume(path.parents[1])}` evaluates again"
        raise StorageError(f"cannot read {path} ({error}): {again}") from error


def _report(folder: Path, found: Compared, identity: str, parents: dict[str, str], samples_digest: str) -> Report:
    before, after, questions = found.before, found.after, found.questions
    verdict = judge(before.scores, after.scores, min_improvement=found.least)
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
        details=_details(found, verdict),
        parents=parents,
    )


def _details(found: Compared, verdict: Verdict) -> dict[str, Any]:
    """Counts and times that have no field of their own, and the counts in words."""
    before, after, score = found.before, found.after, found.questions.score
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
        "words": ", ".join([*told, *([found.words] if found.words else [])]),
        "counts": counted,
        "cut": cut,
        "generated_tokens": [before.tokens, after.tokens],
        "generate_s": [before.generate_s, after.generate_s],
        "loss_s": [before.loss_s, after.loss_s],
        "interval": [verdict.difference.low, verdict.difference.high],
        "differing": verdict.difference.differing,
        "max_new_tokens": found.questions.max_new_tokens,
        **({"sources": sources} if (sources := _by_source(found)) else {}),
    }


def _by_source(found: Compared) -> list[dict[str, Any]]:
    """Of a mixture, each source that was measured: samples and pairs [base, tuned] of score and loss."""
    questions, both = found.questions, (found.before, found.after)
    rows = []
    known = {sample.source for sample in questions.held_out} | {sample.source for sample in questions.loss_samples}
    for source in sorted(known - {""}):
        at = [place for place, sample in enumerate(questions.held_out) if sample.source == source]
        scores = [sum(measured.scores[place] for place in at) / len(at) if at else None for measured in both]
        losses = [measured.losses.get(source) for measured in both]
        name = questions.scores.get(source, questions.score)
        rows.append({"source": source, "samples": len(at), "score_name": name, "score": scores, "loss": losses})
    return rows


def _whole_report(folder: Path) -> Report | None:
    """The report in a folder whose files are whole."""
    try:
        raw = read_json(folder / REPORT)
        report = Report.from_dict({**raw, "path": str(folder)})
        return report if digest_file(folder / SAMPLES) == raw["samples_sha256"] else None
    except (StorageError, ValueError, KeyError, OSError):
        return None
