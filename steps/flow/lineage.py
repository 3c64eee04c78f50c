"""Which data, code and settings made this model: pure functions over the records.

Used by `stages`. The result is a plain dict; it becomes an artifact, `lineage.json` in the merged folder, and the cards' tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.plain_text import counted
from steps.protocol.records import Adapter, BaseModel, PreparedData, Published, Report, digest_file, digest_of
from steps.protocol.rundir import LINEAGE
from steps.settings.catalog import HUB_ID
from steps.settings.plan import Plan

SCHEMA = "hyperpod-lora/lineage/1"
HUB = "https://huggingface.co"
LOCK = "requirements.lock"
RUN = re.compile(r"\w+/[\w.-]+")
"""`Flow/run id`."""


def build(
    plan: Plan,
    base: BaseModel,
    prepared: PreparedData,
    adapter: Adapter,
    *,
    code: Mapping[str, str],
    pathspec: str,
    libraries: Mapping[str, str],
) -> dict[str, Any]:
    """The lineage of the model that `adapter` makes of `base`. `libraries`: versions where the flow's steps run."""
    image = plan.settings.cluster.image if plan.settings.is_on_cluster else ""
    return {
        "schema": SCHEMA,
        "run": pathspec,
        **({"continued_from": plan.continue_from} if plan.continue_from else {}),
        "code": dict(code),
        "settings_digest": digest_of(plan.model_dump(mode="json")),
        "base": {name: getattr(base, name) for name in ("name", "source", "revision", "digest")},
        "data": _data(plan, prepared),
        "training": _training(plan, prepared, adapter),
        "adapter": {"digest": adapter.digest, "identity": adapter.identity},
        "image": image,
        "libraries": dict(libraries),
    }


def _data(plan: Plan, prepared: PreparedData) -> dict[str, Any]:
    return {
        "name": plan.dataset.name,
        "source": prepared.source,
        "fingerprint": _fingerprint(prepared),
        "files": list(prepared.files),
        "digest": prepared.digest,
        "train_samples": prepared.train_samples,
        "validation_samples": prepared.validation_samples,
        **({"sources": prepared.sources} if prepared.sources else {}),
    }


def _training(plan: Plan, prepared: PreparedData, adapter: Adapter) -> dict[str, Any]:
    training, lora = plan.training, plan.training.lora
    return {
        "method": adapter.method,
        "rank": adapter.rank,
        "alpha": lora.alpha,
        "dropout": lora.dropout,
        "targets": list(lora.targets),
        "init_adapter": lora.init_adapter,
        "init_adapter_digest": adapter.parents.get("init_adapter", ""),
        "init_adapter_run": run_of(lora.init_adapter),
        "steps": adapter.step,
        "sequence_length": prepared.sequence_length,
        "packed": prepared.packed,
        "learning_rate": training.learning_rate,
        "global_batch": training.global_batch,
        "seed": training.seed,
        "precision": training.precision,
        "attempts": adapter.attempts,
        "loss": [adapter.first_loss, adapter.last_loss],
    }


def locked_libraries(root: Path) -> dict[str, str]:
    """`lock`: SHA-256 of the lock that the checkout's libraries are installed from, where there is one."""
    lock = root / LOCK
    return {"lock": digest_file(lock)} if lock.is_file() else {}


def run_of(folder: str) -> str:
    """The run that made an adapter, as its own lineage says; empty where nobody knows."""
    try:
        told = json.loads(Path(folder, LINEAGE).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return ""
    run = told.get("run") if isinstance(told, dict) else ""
    return run if isinstance(run, str) else ""


def links(lineage: Mapping[str, Any], ui: str) -> dict[str, str]:
    """Addresses in the Metaflow UI of the runs that a lineage names, as far as it names them by `Flow/run id`."""
    training = lineage.get("training", {})
    named = {
        "this run": lineage.get("run"),
        "continued from": lineage.get("continued_from"),
        "adapter started from": training.get("init_adapter_run"),
    }
    own = str(lineage.get("run", "")).partition("/")[0]
    runs = {what: run if "/" in run else f"{own}/{run}" for what, run in named.items() if isinstance(run, str) and run}
    shown = {what: run for what, run in runs.items() if RUN.fullmatch(run)}
    return {what: f"{ui.rstrip('/')}/{run}" for what, run in shown.items()} if ui else {}


def _fingerprint(prepared: PreparedData) -> str:
    """Of the source: what `sha256sum` shows where it is one file; else of its rows (`files` has each file's)."""
    return prepared.files[0].partition("  ")[0] if len(prepared.files) == 1 else prepared.fingerprint


def with_scores(lineage: Mapping[str, Any], report: Report | None) -> dict[str, Any]:
    """The lineage with what the evaluation found, once there is one."""
    if report is None:
        return dict(lineage)
    scores = {
        "digest": report.digest,
        "score": report.score_name,
        "samples": report.samples,
        "base_score": report.base_score,
        "tuned_score": report.tuned_score,
        "base_loss": report.base_loss,
        "tuned_loss": report.tuned_loss,
        "gate_passed": report.gate_passed,
        **({"sources": report.details["sources"]} if "sources" in report.details else {}),
    }
    return {**lineage, "evaluation": scores}


def with_addresses(lineage: Mapping[str, Any], published: Published) -> dict[str, Any]:
    """The lineage with where the model was handed on to."""
    return {
        **lineage,
        "published": {"name": published.name, "digest": published.digest, **published.addresses, **published.versions},
    }


def flat(lineage: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested keys joined with dots, for a table."""
    rows: dict[str, object] = {}
    for key, value in lineage.items():
        if isinstance(value, Mapping):
            rows.update(flat(value, f"{prefix}{key}."))
        else:
            rows[prefix + key] = value
    return rows


def flat_text(values: Mapping[str, Any]) -> dict[str, str]:
    """The same with every value as text: as it is, or as JSON."""
    rows = flat(values).items()
    return {name: item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for name, item in rows}


def plan_facts(plan: Plan, prepared: PreparedData) -> dict[str, object]:
    """The settings that a reader of the train card asks for first."""
    training, lora = plan.training, plan.training.lora
    processes = counted(plan.world, "process", "processes")
    return {
        "model": plan.model.title or plan.model.name,
        "data": f"{prepared.train_samples:,} samples of {prepared.source}",
        "method": f"{lora.method}, rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}",
        "targets": ", ".join(lora.targets),
        **({"started from": f"the adapter in {lora.init_adapter}"} if lora.init_adapter else {}),
        "batch": f"{counted(training.global_batch, 'row')} = {processes} × {plan.accumulation} × {training.micro_batch}",
        "sequence length": f"{plan.sequence_length}, {'packed' if prepared.packed else 'not packed'}",
        "learning rate": f"{training.learning_rate:g}, {training.scheduler}, warm-up {training.warmup_ratio:.0%}",
        "precision": training.precision
        + (f", base in {training.quantization}" if training.quantization != "none" else ""),
        "seed": training.seed,
        **{f"{what} on the hub": address for what, address in hub_pages(plan).items()},
    }


def hub_pages(plan: Plan) -> dict[str, str]:
    """Where the base model and the data set are on the hub, if they are."""
    named = {"base model": ("", plan.model.hub), "data": ("datasets/", plan.dataset.hub)}
    return {what: f"{HUB}/{kind}{name}" for what, (kind, name) in named.items() if HUB_ID.fullmatch(name)}


CHANGING_TAGS = ("state:", "score:", "gate:")
"""Beginnings of tags that a later stage sets anew."""


def tags(plan: Plan, state: str, report: Report | None = None) -> list[str]:
    """Tags that make a run findable in the Metaflow UI, from its first stage on; `state`: the stage that it is in, or `done`.

    A run that failed or was interrupted keeps the stage where it was.
    """
    known = [
        f"model:{plan.model.name}",
        f"dataset:{plan.dataset.name}",
        f"method:{plan.training.lora.method}",
        f"state:{state}",
    ]
    scores = (
        [f"score:{report.tuned_score:.3f}", f"gate:{'passed' if report.gate_passed else 'failed'}"] if report else []
    )
    return known + scores


def example_prompt(report: Report) -> str:
    """The first sample's prompt on one line, for the command that talks to the model."""
    try:
        with Path(report.path, "samples.jsonl").open(encoding="utf-8") as file:
            prompt = str(json.loads(file.readline())["prompt"])
    except (OSError, ValueError, KeyError, TypeError):
        return "Hello"
    return " ".join(prompt.split()) or "Hello"
