"""A plan for TorchNeuron (`launcher.backend: torchneuron`): processes, refusals and the pods' environment. Pure.

TorchNeuron is AWS's native torch device `neuron`, in public beta since SDK 2.33, for Trn2 and Trn3 only. What trains is the torch
backend; here stands what the device asks for: one process per logical core, each with a whole model, and no shape that changes
from batch to batch. Called through `stage` by the flow's `start`, before anything is fetched. Nobody here has run it on a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from steps.errors import ConfigError, Problem
from steps.protocol.rundir import GIB
from steps.settings.instances import Instance, find_instance
from steps.settings.plan import Plan
from steps.train.neuron.planning.environment import BETWEEN_NODES, EVERYWHERE
from steps.train.pytorch.attention import is_plain

ROOM = 0.75
"""Of a core's memory that the model's weights may take: the rest is for the adapter, activations and the compiler's scratch."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names under which a config.json says how many experts a layer has."""
NEFF_CACHE = "/var/tmp/neff-cache"
"""Compiled graphs on the node's own disk, filled from `launcher.compile_cache`; see `cache`."""
COMM_PORT = 23457
"""Of the runtime's own rendezvous, beside torch's. Left to itself, rank 0 takes a port at random, which a firewall may close."""
COMPILING_STEPS = 2
"""The first step makes the optimizer's state, so the second is compiled as well."""


def lay_out(plan: Plan, config: Mapping[str, Any]) -> Plan:
    """The plan with its processes, and packing off where a model's packed samples cannot be kept apart in one shape.

    Raises:
        ConfigError: with everything that cannot be done there.
    """
    instance = find_instance(plan.settings.cluster.instance_type)
    plan = _with_packing(plan, config)
    problems = [*_wrong_place(plan, instance), *_wrong_settings(plan), *_wrong_model(plan, config, instance)]
    if problems:
        raise ConfigError(problems)
    return _with_processes(plan, instance) if instance else plan


def _with_packing(plan: Plan, config: Mapping[str, Any]) -> Plan:
    reason = f"packed samples of {config.get('model_type')} cannot be kept apart without a new shape for each row"
    if not plan.packing or is_plain(config, sequence_length=plan.sequence_length):
        return plan
    if "packing" in plan.given:
        raise ConfigError([Problem("--packing", f"on, but {reason}; use --packing auto or off")])
    return plan.model_copy(update={"packing": False, "packing_reason": reason})


def _wrong_place(plan: Plan, instance: Instance | None) -> Iterator[Problem]:
    if instance and not instance.native_groups:
        natives = "trn2.3xlarge and trn2.48xlarge"
        what = f"TorchNeuron runs on Trn2 and Trn3 only, {instance.name} never gets it"
        yield Problem("cluster.instance_type", f"{what}; use launcher.backend neuron there, or {natives}")
    if plan.settings.is_on_cluster and not instance:
        what = "must name the nodes' type with launcher.backend torchneuron: pods ask for its devices"
        yield Problem("cluster.instance_type", f"{what}, as in trn2.48xlarge")


def _wrong_settings(plan: Plan) -> Iterator[Problem]:
    launcher, least = plan.settings.launcher, COMPILING_STEPS
    if plan.training.quantization == "4bit":
        yield Problem("--quantization", "4bit needs bitsandbytes, which knows no neuron device; use none")
    if plan.training.sharding == "fsdp":
        what = (
            "fsdp on TorchNeuron was tried neither on a device nor on a stand-in, whose tensors have no storage to free"
        )
        yield Problem("--sharding", f"{what}; use --sharding ddp, a whole model on each core")
    if launcher.compile_cache.startswith("s3://"):
        what = f"must be a folder with torchneuron, whose graphs are copied as files, got {launcher.compile_cache}"
        yield Problem("launcher.compile_cache", what)
    if plan.settings.deadlines.compiling_steps < least:
        what = f"must be >= {least} with torchneuron, which compiles in the second step too"
        yield Problem("deadlines.compiling_steps", f"{what}, got {plan.settings.deadlines.compiling_steps}")


def _wrong_model(plan: Plan, config: Mapping[str, Any], instance: Instance | None) -> Iterator[Problem]:
    if key := next((key for key in EXPERTS if int(config.get(key) or 0) > 1), ""):
        what = f"{config.get('model_type')} gives each of its {config[key]} experts other tokens in every batch"
        yield Problem("--model", f"{what}: each count would be a shape to compile; use a model without experts")
    weights = weight_bytes(config, bytes_each=2 if plan.training.precision == "bf16" else 4) / GIB
    if instance and weights > instance.core_gib * ROOM:
        room = f"a core of {instance.name} has {instance.core_gib:g} GiB, of which they may take {ROOM:.0%}"
        yield Problem("--model", f"{weights:.1f} GiB of {plan.training.precision} weights: {room}; {_smaller(plan)}")


def _smaller(plan: Plan) -> str:
    return "use --precision bf16, or a smaller model" if plan.training.precision == "fp32" else "use a smaller model"


def weight_bytes(config: Mapping[str, Any], *, bytes_each: int) -> int:
    """Bytes of a Llama-like model's weights, from its config.json; 0 where it names its sizes otherwise."""
    from steps.train.neuron.planning import layout

    try:
        return layout.weight_bytes(config) // 2 * bytes_each
    except (KeyError, TypeError, ValueError):
        return 0


def _with_processes(plan: Plan, instance: Instance) -> Plan:
    """As many processes as the global batch can feed, of the numbers that are known to meet; several nodes take all cores.

    Raises:
        ConfigError: no number of processes divides the batch, or the given one is none of them.
    """
    allowed = [instance.cores] if plan.nodes > 1 else list(instance.native_groups)
    words = ", ".join(map(str, allowed))
    where = f"{instance.name} takes {words}" + (" when there are several nodes" if plan.nodes > 1 else "")
    if plan.processes and plan.processes not in allowed:
        raise ConfigError([Problem("--processes", f"{where}, got {plan.processes}; 0 decides by itself")])
    micro, batch = plan.training.micro_batch, plan.training.global_batch
    tried = [plan.processes] if plan.processes else allowed
    fitting = [number for number in tried if batch % (plan.nodes * number * micro) == 0]
    if not fitting:
        least = plan.nodes * tried[0] * micro
        what = (
            f"must be a multiple of processes × micro batch = {plan.nodes * tried[0]} × {micro} = {least}, got {batch}"
        )
        raise ConfigError([Problem("--global-batch", what)])
    chosen = fitting[-1]
    return plan.model_copy(update={"processes": chosen, "layout": tuple(_reasons(plan, instance, chosen))})


def _reasons(plan: Plan, instance: Instance, processes: int) -> Iterator[str]:
    nodes = f"{plan.nodes} × " if plan.nodes > 1 else ""
    yield f"data parallel {plan.nodes * processes}: {nodes}{processes} processes, one on each logical core"
    if idle := instance.cores - processes:
        why = f"a global batch of {plan.training.global_batch} feeds no more" if not plan.processes else "as given"
        yield f"{idle} of {instance.cores} cores stay idle: {why}"
    yield "TorchNeuron is a public beta, and this has not been run on a device"


def notes(plan: Plan) -> dict[str, str]:
    """What the layout means, for whoever reads the job's manifest."""
    packing = "isolated by a mask" if plan.packing else "off: one sample to a row"
    shape = "all rows of one length, a multiple of 512 (128 below it)"
    return {"layout": f"{plan.world} processes; " + "; ".join(plan.layout), "attention": f"{shape}; packing {packing}"}


def process_environment(plan: Plan) -> dict[str, str]:
    """Of every process, before it starts. Names and defaults are of SDK 2.33 and of the beta's source."""
    found = {
        "TORCH_NEURONX_NEFF_CACHE_DIR": NEFF_CACHE,
        "TORCH_NEURONX_NEFF_LOCAL_CACHE_DIR": f"{NEFF_CACHE}-locks",
        # Other ranks wait while one compiles a graph; by default 1,200 s.
        "TORCH_NEURONX_NEFF_CACHE_LOCK_TIMEOUT": str(int(plan.settings.deadlines.first_step_s)),
        # Two physical cores are a logical one: the compiler and the runtime have to agree.
        "NEURON_LOGICAL_NC_CONFIG": "2",
        # With fp32 masters it gains little and costs that runs repeat.
        "NEURON_RT_STOCHASTIC_ROUNDING_EN": "0",
        "NEURON_RT_EXEC_TIMEOUT": "600",
        # A map of the memory in the log when it is full.
        "NEURON_RT_ENABLE_DEVICE_MEMORY_OOM_LOG": "1",
        **EVERYWHERE,
    }
    if plan.settings.is_on_cluster:
        found["NEURON_RT_ROOT_COMM_ID"] = f"$(MASTER_ADDR):{COMM_PORT}"  # Kubernetes fills it in
    if plan.nodes > 1:
        found |= BETWEEN_NODES
    return found
