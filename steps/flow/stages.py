"""The flow's steps as plain functions: artifacts (dicts) in, one package's `stage` called, artifacts out.

Called by the flows' files and `sweep.branches`; the one place where all packages meet. The sentences of more than a line are in
`summary`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import LoraFlowError
from steps.flow import (
    continuing,
    estimate,
    metaflow_internals,
    neuron_jobs,
    publishing,
    reporting,
    same_training,
    summary,
)
from steps.flow import lineage as lineages
from steps.flow.deciding import bring, cache_folder, check_cluster, decide, directory_of
from steps.flow.heartbeat import Heartbeat
from steps.flow.small_data import fit_to_data
from steps.flow.terminal import StageProgress, say
from steps.flow.training import Inputs, with_share_of
from steps.job import cancel
from steps.job.agent.in_use import in_use, leave
from steps.library_versions import installed_versions
from steps.protocol.records import Adapter, BaseModel, MergedModel, PreparedData, Report
from steps.protocol.rundir import RunDir
from steps.settings.config import parse_options, parse_settings
from steps.settings.options import OPTIONS
from steps.settings.places import project_root
from steps.settings.plan import Plan

if TYPE_CHECKING:
    from steps.flow.decorator import JobHandle

Artifact = dict[str, Any]

NO_CARDS = (
    "cards: without a metadata service the steps of this run cannot draw theirs (`Card render failed … does not exist`); "
    "they lie in the run directory as well: train-*/card.html (live) and evaluation-*/report.html"
)


def start(flow: Any, raw_settings: Mapping[str, Any]) -> tuple[Artifact, Artifact, str]:
    """Settings × options × presets × the model's config.json → plan, base model, run directory.

    Raises:
        LoraFlowError: every mistake that can be known before any weight is fetched, at once.
    """
    from metaflow import current

    from steps.prepare.look import look

    given = {name: getattr(flow, name) for name in OPTIONS}
    settings = parse_settings(dict(raw_settings))
    if metaflow_internals.is_in_pod():
        given = continuing.complete_in_pod(settings.storage.root, given)
    plan, config = decide(settings, given)
    check_cluster(plan)
    look(plan.dataset, cache_folder(plan))
    run = directory_of(plan)
    if metaflow_internals.lacks_cards():
        say(NO_CARDS)
    # A new run has nothing to lose yet.
    with at_work(run.path, "start") if plan.continue_from else contextlib.nullcontext():
        base = bring(plan, config)
    reporting.tag(plan, "start")
    config_given = metaflow_internals.given_config()
    continuing.keep(run, parse_options(given), plan, config=config_given, run_id=str(current.run_id))
    return plan.model_dump(mode="json"), base.to_dict(), str(run.path)


@contextlib.contextmanager
def at_work(run: Path, what: str) -> Iterator[None]:
    """Show everybody that a step of this flow uses the run directory, and keep it for the next one.

    Raises:
        JobCancelled: a person has asked that the flow begins nothing more (a job's own supervisor answers that itself).
    """
    flow = metaflow_internals.flow_id()
    if what not in ("train", "compile"):
        cancel.require_wanted(RunDir(run), flow, what)
    with in_use(run, what, flow=flow):
        yield


def end(run_dir: str) -> None:
    """The flow is over: it keeps the run directory no longer."""
    leave(Path(run_dir), metaflow_internals.flow_id())


def prepare(raw_plan: Artifact, raw_base: Artifact, run_dir: str) -> tuple[Artifact, Artifact]:
    """Tokenised rows and their order; the plan, fitted to small data, in one line.

    Raises:
        LoraFlowError: unusable data, full disk, or a continued run that this one does not match.
    """
    from steps.prepare import stage as prepare_stage

    plan, base, run = Plan.model_validate(raw_plan), BaseModel.from_dict(raw_base), RunDir(Path(run_dir))
    if plan.continue_from:
        plan = with_share_of(run, plan)
    begun_s = time.time()
    reporting.tag(plan, "prepare")
    with at_work(run.path, "prepare"):
        prepared = prepare_stage.prepare(plan, base, run, cache=cache_folder(plan), progress=StageProgress())
        if (fitted := fit_to_data(plan, prepared)) != plan:
            plan = fitted
            prepared = prepare_stage.prepare(plan, base, run, cache=cache_folder(plan), progress=StageProgress())
    if Path(prepared.path).stat().st_mtime < begun_s:
        say(f"data: prepared before and used as it is, in {prepared.path}")
    for line in summary.describe_data(prepared):
        say(line)
    inputs = Inputs(plan, base, prepared)
    spec, _ = inputs.job(run)
    if plan.continue_from:
        same_training.check_continuation(spec, run, plan)
    inputs.save(run)
    say(estimate.plan_line(plan, base, prepared, cache=cache_folder(plan)))
    return plan.model_dump(mode="json"), prepared.to_dict()


def train(
    handle: JobHandle, raw_plan: Artifact, raw_base: Artifact, raw_prepared: Artifact, run_dir: str
) -> tuple[Artifact, dict[str, bytes]]:
    """Train, or adopt the training that runs already; the adapter's record and its files' bytes.

    Raises:
        JobError: it ended badly for good.
    """
    from steps.train import stage as train_stage

    plan, base = Plan.model_validate(raw_plan), BaseModel.from_dict(raw_base)
    prepared = PreparedData.from_dict(raw_prepared)
    spec, job = Inputs(plan, base, prepared).job(RunDir(Path(run_dir)))
    facts = lineages.plan_facts(plan, prepared)
    reporting.tag(plan, "train")
    with at_work(Path(run_dir), "train"):
        if plan.settings.launcher.precompile and not job.directory.adapter.is_dir():
            say(neuron_jobs.precompile(handle, job, plan.settings, facts))
        reporter = reporting.reporter_of(plan, prepared, job.directory.path)
        result = handle.run(job, plan.settings, title=f"Training {job.label}", facts=facts, reporter=reporter)
        adapter = train_stage.collect(
            spec, result.result_dir, attempts=result.attempts, account=result.account, layout=result.layout
        )
    share = estimate.share_of(job.directory.events(result.attempts), plan)
    estimate.remember(plan, base, result.account, prepared, cache=cache_folder(plan), share=share)
    say(
        f"adapter: {adapter.path}, {adapter.bytes / 2**20:.1f} MiB, loss {adapter.first_loss:.4f} → {adapter.last_loss:.4f}"
    )
    files = {path.name: path.read_bytes() for path in sorted(Path(adapter.path).iterdir()) if path.is_file()}
    return adapter.to_dict(), files


def lineage(raw_plan: Artifact, raw_base: Artifact, raw_prepared: Artifact, raw_adapter: Artifact) -> Artifact:
    """Which data, code and settings made this model."""
    return lineages.build(
        Plan.model_validate(raw_plan),
        BaseModel.from_dict(raw_base),
        PreparedData.from_dict(raw_prepared),
        Adapter.from_dict(raw_adapter),
        code={**metaflow_internals.code_version(project_root()), **lineages.locked_libraries(project_root())},
        pathspec=metaflow_internals.pathspec(),
        libraries=installed_versions(),
    )


def merge(raw_plan: Artifact, raw_base: Artifact, raw_adapter: Artifact, run_dir: str, made_from: Artifact) -> Artifact:
    """Base plus adapter as one model folder, with a model card in both.

    Raises:
        LoraFlowError: damaged weights, an adapter for another base, full disk.
    """
    from steps.flow.model_card import Made, write_cards
    from steps.merge import stage as merge_stage

    plan, base, adapter = Plan.model_validate(raw_plan), BaseModel.from_dict(raw_base), Adapter.from_dict(raw_adapter)
    run = RunDir(Path(run_dir))
    reporting.tag(plan, "merge")
    with at_work(run.path, "merge"):
        merged = merge_stage.merge(plan, base, adapter, run, lineage=made_from, progress=StageProgress())
        write_cards(Made(plan, base, adapter, merged, made_from))
    say(f"merged model: {merged.path}, {merged.bytes / 2**20:,.0f} MiB of {merged.dtype} in {merged.seconds:.1f} s")
    return merged.to_dict()


def after_evaluation(raw_plan: Artifact, raw_report: Artifact) -> str:
    """Which step is next: `publish`, where it is asked for and the gate is passed, `compile` or `stop`."""
    if publishing.follows(Plan.model_validate(raw_plan), Report.from_dict(raw_report)):
        return "publish"
    return after_publishing(raw_plan)


def after_publishing(raw_plan: Artifact) -> str:
    """`compile`, where the merged model is to be compiled for Neuron cores, or `stop`."""
    return "compile" if Plan.model_validate(raw_plan).settings.inference.enabled else "stop"


def publish(
    raw_plan: Artifact, made: Sequence[Artifact], run_dir: str, made_from: Artifact
) -> tuple[Artifact, Artifact]:
    """Hand on the model that passed the gate; the record, and the lineage with its addresses. `made`: adapter, merged, report.

    Raises:
        LoraFlowError: see `steps.publish.stage`.
    """
    from steps.publish.stage import Made

    plan, (raw_adapter, raw_merged, raw_report) = Plan.model_validate(raw_plan), made
    found = Made(
        MergedModel.from_dict(raw_merged),
        Adapter.from_dict(raw_adapter),
        Report.from_dict(raw_report),
        made_from,
        metaflow_internals.pathspec(),
        os.environ,
    )
    reporting.tag(plan, "publish")
    with at_work(Path(run_dir), "publish"):
        published, lineage = publishing.publish(plan, found, RunDir(Path(run_dir)))
    return published.to_dict(), lineage


def compile_merged(handle: JobHandle, raw_plan: Artifact, raw_merged: Artifact, run_dir: str) -> Artifact:
    """The merged model compiled for inference, or why it was skipped and which command would do it.

    Raises:
        LoraFlowError: model and request do not go together, or the compiler failed.
    """
    plan, merged = Plan.model_validate(raw_plan), MergedModel.from_dict(raw_merged)
    reporting.tag(plan, "compile")
    with at_work(Path(run_dir), "compile"):
        compiled = neuron_jobs.compile_merged(handle, plan, merged, RunDir(Path(run_dir)))
    reporting.tag(plan, "done")
    say(neuron_jobs.describe(compiled))
    return compiled.to_dict()


def evaluate(
    card: Any, raw_plan: Artifact, made: Sequence[Artifact], run_dir: str, made_from: Artifact
) -> tuple[Artifact, Artifact]:
    """Base against tuned model on held-out samples: report, and the lineage with its scores. `made`: base to merged, in order.

    Fills the card, completes the model cards, applies the gate.

    Raises:
        LoraFlowError: the merge changed what the model computes, or the gate failed and `evaluation.on_gate_failure` is `fail`.
    """
    from steps.evaluate import stage as evaluate_stage
    from steps.evaluate.handover import check_merged
    from steps.evaluate.report import read_samples
    from steps.flow.cards.metaflow_cards import fill_evaluate_card
    from steps.flow.model_card import Made, title_of, write_cards

    plan, (raw_base, raw_prepared, raw_adapter, raw_merged) = Plan.model_validate(raw_plan), made
    base, prepared = BaseModel.from_dict(raw_base), PreparedData.from_dict(raw_prepared)
    adapter, merged, run = Adapter.from_dict(raw_adapter), MergedModel.from_dict(raw_merged), RunDir(Path(run_dir))
    begun_s, start_s = time.time(), estimate.start_s()
    reporting.tag(plan, "evaluate")
    progress = StageProgress("evaluation: loading a model")
    with at_work(run.path, "evaluate"), Heartbeat(lambda: progress.doing):
        check_merged(plan, prepared, adapter, merged, progress=progress)
        report = evaluate_stage.evaluate(plan, base, prepared, adapter, merged, run, progress=progress)
        told = Made(plan, base, adapter, merged, made_from, report, lineages.example_prompt(report))
        write_cards(told)
    if Path(report.path, "report.json").stat().st_mtime >= begun_s:  # not one that an earlier run had made
        took = {"merge": merged.seconds, "evaluate": start_s + time.time() - begun_s}
        estimate.remember_after(plan, prepared, took, cache=cache_folder(plan))
    fill_evaluate_card(
        card,
        title=title_of(told),
        report=report,
        samples=read_samples(report),
        shown=plan.settings.evaluation.samples,
        lineage=lineages.flat(made_from),
        links=reporting.links(made_from),
    )
    reporting.tag(plan, "done", report)
    reporting.tell_evaluation(plan, prepared, adapter, report)
    require_gate(plan, report)
    return report.to_dict(), lineages.with_scores(made_from, report)


def require_gate(plan: Plan, report: Report) -> None:
    """What follows from the gate, where it is more than a tag.

    Raises:
        LoraFlowError: it is not passed, and `evaluation.on_gate_failure` is `fail`.
    """
    if not report.gate_passed and plan.settings.evaluation.on_gate_failure == "fail":
        raise LoraFlowError(f"the gate is not passed: {report.gate}; the report is in {report.path}")
