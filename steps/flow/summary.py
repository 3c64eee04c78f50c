"""What the steps say at length: of the data they read, and at the end what was learned, where it lies and what to type next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.flow import lineage as lineages
from steps.flow import metaflow_internals
from steps.flow.cards.evaluate import by_source, gate_words, headline, interval_words, notes, outcome, score_words
from steps.flow.terminal import say
from steps.plain_text import counted
from steps.protocol.records import Adapter, MergedModel, PreparedData, Report
from steps.protocol.run_options import how_to_continue

REMEDY = "Train longer, or look at the data."


def describe_data(data: PreparedData) -> list[str]:
    """What was read, kept, cut and not used, in sentences."""
    lines = [
        f"data: {counted(data.samples, 'sample')} from {data.source} ({data.shape}); {data.train_samples:,} to train on, "
        f"{data.validation_samples:,} held out; {counted(data.rows, 'row')} of up to {data.sequence_length:,} tokens"
        + (f", packed, {data.fill:.1%} full" if data.packed else "")
    ]
    unusable = data.skipped - data.too_long
    left_out = [
        *([counted(data.duplicates, "duplicate")] if data.duplicates else []),
        *([f"{counted(unusable, 'row')} without a usable conversation"] if unusable else []),
        *([f"{counted(data.too_long, 'row')} whose answer begins too late for the length"] if data.too_long else []),
    ]
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}")
    if data.truncated_samples:
        cut, lost = counted(data.truncated_samples, "sample"), counted(data.truncated_tokens, "token")
        lines.append(f"cut to length: {cut} lost {lost}")
    return [*lines, *(source_words(source) for source in data.sources), *data.notes]


def source_words(source: Mapping[str, Any]) -> str:
    """What is used of one source of a mixture."""
    train, held_out = source["train_samples"], source["validation_samples"]
    return f"  {source['name']}: {counted(train, 'sample')} to train on, {held_out:,} held out"


def conclude(flow: Any) -> None:
    """The last words of a run: what was learned, where it lies, what to type next."""
    if flow.dry_run:
        metaflow_internals.tag_run(["state:dry-run"], instead_of=["state:"])
        run = Path(flow.prepared["path"]).parent
        say(f"dry run: nothing was trained. To train with these options on this data: {how_to_continue(run)}")
        return
    report, adapter, merged = (
        Report.from_dict(flow.report),
        Adapter.from_dict(flow.adapter),
        MergedModel.from_dict(flow.merged),
    )
    script, step = Path(sys.argv[0]).resolve(), f"{metaflow_internals.pathspec().rpartition('/')[2]}/evaluate"
    talk = Path(sys.executable).parent / "hyperpod-lora"
    interval = f", {words}" if (words := interval_words(report)) else ""
    for line in (
        "",
        verdict(report),
        f"  {score_words(report)} on {counted(report.samples, 'sample')} it never saw: {headline(report)}{interval}",
        *(f"  {note}" for note in notes(report)),
        f"  loss on held-out samples: {report.base_loss:.4f} → {report.tuned_loss:.4f}",
        *(f"  {name}: {base} → {tuned}" for name, base, tuned in by_source(report)),
        f"  {gate_words(report)}",
        "",
        f"adapter       {adapter.path}",
        f"merged model  {merged.path}",
        *(f"published     {address}" for address in getattr(flow, "published", {}).get("addresses", {}).values()),
        f"see the card  {shlex.join([sys.executable, str(script), 'card', 'view', step, '--id', 'evaluation'])}",
        f"talk to it    {shlex.join([str(talk), 'generate', merged.path, lineages.example_prompt(report)])}",
    ):
        say(line)


def verdict(report: Report) -> str:
    """Did it learn? In one sentence: by the interval of the scores, and by the loss."""
    cannot_tell = f"whether its answers are better, {counted(report.samples, 'sample')} cannot tell"
    if report.tuned_loss < report.base_loss:
        return {
            "better": "The model learned: both score and loss are better than the base model's.",
            "same": "The model learned a little: its loss is lower than the base model's, its score is not higher.",
            "unsure": f"The model learned: its loss is lower than the base model's; {cannot_tell}.",
            "worse": "Mixed: the loss is lower than the base model's, but its answers are worse; look at the samples.",
        }[outcome(report)]
    return {
        "better": "Mixed: the score is higher than the base model's, the loss is not lower; look at the samples.",
        "same": f"The model did not learn: neither score nor loss is better than the base model's. {REMEDY}",
        "unsure": f"The loss is not lower than the base model's; {cannot_tell}. {REMEDY}",
        "worse": f"The model did not learn: its answers are worse, its loss is not lower than the base model's. {REMEDY}",
    }[outcome(report)]
