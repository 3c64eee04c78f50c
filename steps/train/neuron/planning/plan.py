"""A plan for Neuron cores: the layout chosen or checked, all refusals at once, and what the job's pods are told. Pure.

Called through `stage` by the flow's `start`, as soon as the model's config.json is known: before anything is fetched, prepared or
submitted. What each refusal means is in `neuron_refusals`, the table in `neuron_layout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steps.errors import ConfigError, Problem
from steps.settings.instances import find_instance
from steps.settings.plan import Plan
from steps.train.neuron.cache import is_remote
from steps.train.neuron.planning.environment import LOCAL_CACHE, neuron_environment
from steps.train.neuron.planning.layout import Asked, Layout, choose_layout
from steps.train.neuron.planning.refusals import attention_of, check_training, sharing_note


def lay_out(plan: Plan, config: Mapping[str, Any]) -> Plan:
    """The plan with its processes and tensor parallelism, each with its reason, and what its adapter shares here.

    Raises:
        ConfigError: with everything that the neuron backend cannot do, or that does not fit the instance.
    """
    laid_out = plan if _is_left_alone(plan) else _with_layout(plan, _layout(plan, config))
    check_training(laid_out, config, world=laid_out.world)
    note = sharing_note(laid_out, config)
    if not note or note in laid_out.layout:
        return laid_out
    return laid_out.model_copy(update={"layout": (*laid_out.layout, note)})


def _is_left_alone(plan: Plan) -> bool:
    """On a machine of unknown type, what is given stands."""
    return plan.is_laid_out and not plan.settings.cluster.instance_type


def _layout(plan: Plan, config: Mapping[str, Any]) -> Layout:
    instance = find_instance(plan.settings.cluster.instance_type)
    if instance is None:
        what = "0 is chosen by the instance type: give cluster.instance_type (of this machine too), or a number"
        raise ConfigError([Problem("launcher.tensor_parallel", what)])
    sizes = (plan.processes, plan.tensor_parallel, plan.pipeline_parallel)
    return choose_layout(
        config, instance, Asked(plan.nodes, plan.training.global_batch, plan.training.micro_batch, *sizes)
    )


def _with_layout(plan: Plan, layout: Layout) -> Plan:
    chosen = {"processes": layout.processes, "tensor_parallel": layout.tensor_parallel, "layout": layout.reasons}
    return plan.model_copy(update=chosen)


def notes(plan: Plan) -> dict[str, str]:
    """What the layout means, for whoever reads the job's manifest."""
    attention = attention_of(packed=plan.packing, sequence_length=plan.sequence_length)
    packing = "isolated by a mask" if plan.packing else "off: one sample to a row"
    return {
        "layout": f"TP={plan.tensor_parallel} DP={plan.replicas} PP={plan.pipeline_parallel}, {plan.world} processes; "
        + "; ".join(plan.layout),
        "attention": f"{attention}; packing {packing}",
    }


def process_environment(plan: Plan) -> dict[str, str]:
    """Of every process, before it starts."""
    cache = plan.settings.launcher.compile_cache
    return neuron_environment(nodes=plan.nodes, compile_cache=cache if is_remote(cache) else LOCAL_CACHE)
