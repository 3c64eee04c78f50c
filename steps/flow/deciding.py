"""What is decided, looked at and brought here in the first step: the plan, the run directory, the cluster, the base model."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.errors import Mistakes
from steps.flow import continuing, metaflow_internals, neuron_jobs, publishing, reporting, same_training
from steps.flow.terminal import StageProgress, say
from steps.machine import has_fast_bf16
from steps.protocol.records import BaseModel
from steps.protocol.rundir import RunDir, run_directory
from steps.settings.checks import check_libraries, check_model
from steps.settings.config import Settings
from steps.settings.places import home
from steps.settings.plan import Plan
from steps.settings.settle import settle


def cache_folder(plan: Plan) -> Path:
    """Where base models and downloaded data are kept."""
    return Path(plan.settings.storage.cache).expanduser().resolve()


def decide(settings: Settings, given: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan of these options, fitted to the model, and the model's config.json; no weight is fetched.

    Raises:
        LoraFlowError: what cannot be.
    """
    from steps.base import stage as base_stage
    from steps.evaluate import stage as evaluate_stage
    from steps.train import architecture
    from steps.train import stage as train_stage

    fast_bf16 = not settings.is_on_cluster and has_fast_bf16()
    plan = settle(lambda: settings, given, fast_bf16=fast_bf16)
    check_libraries(plan, lambda name: importlib.util.find_spec(name) is not None)
    evaluate_stage.check_score(plan)
    check_addresses(plan)
    config = base_stage.describe(plan.model, cache=cache_folder(plan))
    check_model(plan, config)
    plan = train_stage.lay_out(architecture.fit_to_architecture(plan, config), config)
    neuron_jobs.check_inference(plan, config)
    return plan, config


def check_addresses(plan: Plan) -> None:
    """Whether all that is to be told and handed on can be.

    Raises:
        ConfigError: with everything that cannot.
    """
    mistakes = Mistakes()
    for look in (reporting.check, publishing.check):
        mistakes.look(functools.partial(look, plan), None)
    mistakes.tell()


def directory_of(plan: Plan) -> RunDir:
    """Where the run's files go: a directory of its own, or that of the run which it continues.

    Raises:
        ConfigError: no such run, or it was another training.
    """
    from metaflow import current

    flow_name, root = str(current.flow_name), plan.settings.storage.root
    run = run_directory(root, home(), flow_name, str(current.run_id))
    if plan.continue_from:
        run = continuing.find_run(root, plan.continue_from, flow_name)
        same_training.check_settings(plan, run)
        say(f"continuing {run.path}")
    say(f"run directory: {run.path}")
    return run


def check_cluster(plan: Plan) -> None:
    """Look at the cluster before anything is fetched or made.

    Raises:
        ClusterError: with everything that would keep the job from running, and what to do about each.
    """
    if not plan.settings.is_on_cluster or not plan.settings.cluster.preflight:
        return
    from steps.preflight.run import require
    from steps.preflight.survey import Target

    target = Target(
        plan.settings, plan.processes, metaflow_internals.metaflow_datastore(), is_inside=metaflow_internals.is_in_pod()
    )
    require(target, notice=say)


def bring(plan: Plan, config: Mapping[str, Any]) -> BaseModel:
    """The base model on this machine, its weights and vocabulary looked at; `config` is its config.json.

    Raises:
        LoraFlowError: it cannot be had, or does not go together with the plan.
    """
    from steps.base import stage as base_stage
    from steps.base.vocabulary import check_vocabulary
    from steps.train import architecture

    least_gib = plan.settings.storage.min_free_gib
    base = base_stage.fetch(plan.model, cache=cache_folder(plan), min_free_gib=least_gib, progress=StageProgress())
    check_vocabulary(Path(base.path))
    architecture.check_weights(plan, config, Path(base.path))
    say(f"base model: {base.name}, {base.parameters / 1e6:,.0f} M parameters, {base.source}, in {base.path}")
    return base
