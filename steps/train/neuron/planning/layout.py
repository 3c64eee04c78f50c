"""Which processes, tensor and data parallelism a model gets on Neuron instances, and what the model must divide by. Pure.

Used by `neuron_plan` before anything is submitted. The table's rule, in one sentence: the smallest tensor parallelism whose share
of the bf16 weights fits a quarter of a core's memory, then as many processes as the global batch can feed. Less tensor
parallelism means less communication; the other three quarters are for activations and the compiler's scratch (computed, not
measured: nobody here has run it on the device).

| model (Llama) | bf16 weights | trn1.32xlarge (32 cores, 16 GiB each) | trn2.48xlarge (64 logical cores, 24 GiB each) |
|---|---|---|---|
| 3.2 1B | 2.3 GiB | TP=1, DP=32 | TP=1, DP=64 |
| 3.2 3B | 6.0 GiB | TP=2, DP=16 | TP=1, DP=64 |
| 3.1 8B | 15.0 GiB | TP=8, DP=4 | TP=4, DP=16 |

trn1 takes no TP=4: groups of 4 are not among its collectives' sizes. On several nodes DP grows with them. A global batch that
cannot feed every replica leaves cores idle, and the reasons say so. What a person gives (launcher.tensor_parallel, --processes)
stands; the reasons then say what the rule would have said against it.

Pipeline parallelism (launcher.pipeline_parallel) is never chosen, only given: the models here fit without it, and its stages wait
for each other. With it the rule takes the largest stage's weights for the model's, so that tensor parallelism may be less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steps.errors import ConfigError, Problem
from steps.settings.instances import Instance

GIB = 1024**3
WEIGHTS_SHARE = 0.25
"""Of a core's memory."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the layout has to serve, and what of it is given."""

    nodes: int
    global_batch: int
    micro_batch: int
    processes: int = 0
    """Per node; 0: as many as there are cores, or fewer."""
    tensor_parallel: int = 0
    """0: by the rule."""
    pipeline_parallel: int = 1
    """Stages; always given."""

    def replicas(self, processes: int, tensor_parallel: int) -> int:
        """Copies of the model on so many processes per node."""
        return self.nodes * processes // (tensor_parallel * self.pipeline_parallel)


@dataclass(frozen=True, slots=True)
class Layout:
    """Who computes what."""

    nodes: int
    processes: int
    """Per node."""
    tensor_parallel: int
    data_parallel: int
    """Replicas of the model; ZeRO-1 shards the optimizer over them."""
    reasons: tuple[str, ...]
    """In words, for the plan and the manifest."""


def weight_bytes(config: Mapping[str, Any], pipeline_parallel: int = 1) -> int:
    """Bytes of a Llama-like model's bf16 weights, from its config.json; of several stages, of the largest.

    The libraries give each stage as many layers as the others, or one more, the embedding to the first and lm_head to the last.
    """
    hidden, layers, heads = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    head_size = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    attention = 2 * hidden * head_size * (heads + kv_heads)
    layer = attention + 3 * hidden * int(config["intermediate_size"]) + 2 * hidden
    is_one = pipeline_parallel > 1 or config.get("tie_word_embeddings")
    embeddings = int(config["vocab_size"]) * hidden * (1 if is_one else 2)
    return 2 * (-(-layers // pipeline_parallel) * layer + embeddings + hidden)


def choose_layout(config: Mapping[str, Any], instance: Instance, asked: Asked) -> Layout:
    """The layout by the table's rule, or as given.

    Raises:
        ConfigError: the model does not fit the instance, the sizes do not go together, or the global batch feeds no number of
            processes.
    """
    weights = weight_bytes(config, asked.pipeline_parallel) / GIB
    size = asked.tensor_parallel or _smallest(config, instance, weights)
    processes = _processes(instance, asked, size)
    share, replicas = weights / size, asked.replicas(processes, size)
    stages = f" / {asked.pipeline_parallel}" if asked.pipeline_parallel > 1 else ""
    said = "as given" if asked.tensor_parallel else "the smallest that fits"
    reasons = [
        f"tensor parallel {size}: {said}, leaves {share:.1f} GiB of bf16 weights to a core of {instance.core_gib:g} GiB "
        f"({WEIGHTS_SHARE:.0%} are allowed)",
        f"data parallel {replicas}: {asked.nodes} × {processes} processes / {size}{stages}; "
        "ZeRO-1 shards the optimizer over it",
    ]
    if stages:
        reasons.append(_why_stages(asked, replicas))
    if share > instance.core_gib * WEIGHTS_SHARE:
        reasons.append(f"{share:.1f} GiB are more than the rule allows: memory may not suffice")
    if size not in instance.groups:
        reasons.append(
            f"groups of {size} are not among those that {instance.name} is known to take: {_list(instance.groups)}"
        )
    if processes < instance.cores:
        reasons.append(
            f"{instance.cores - processes} of {instance.cores} cores stay idle: {_why_idle(instance, asked, size)}"
        )
    return Layout(asked.nodes, processes, size, replicas, tuple(reasons))


def _why_stages(asked: Asked, replicas: int) -> str:
    stages, flowing = asked.pipeline_parallel, asked.global_batch // (replicas * asked.micro_batch)
    idle = (stages - 1) / (flowing + stages - 1)
    return (
        f"pipeline parallel {stages}: as given; {flowing} micro-batches of a step flow through {stages} stages, each of which "
        f"waits {idle:.0%} of the time for the others"
    )


def _smallest(config: Mapping[str, Any], instance: Instance, weights: float) -> int:
    room = instance.core_gib * WEIGHTS_SHARE
    fitting = [size for size in instance.groups if weights / size <= room and not why_not_split(config, size)]
    if fitting:
        return fitting[0]
    what = (
        f"{weights:.1f} GiB of bf16 weights do not fit {instance.name}: none of its tensor-parallel sizes "
        f"({_list(instance.groups)}) leaves at most {room:g} GiB to a core and divides the model; use a larger instance, or a "
        "smaller model"
    )
    raise ConfigError([Problem("cluster.instance_type", what)])


def _processes(instance: Instance, asked: Asked, size: int) -> int:
    if asked.processes:
        return _given_processes(instance, asked, size)
    # Several nodes only work together with all their cores.
    allowed = [instance.cores] if asked.nodes > 1 else list(instance.groups)
    divisible = [processes for processes in allowed if _why_not_processes(asked, processes, size) is None]
    if not divisible:
        stages = f" × pipeline parallel {asked.pipeline_parallel}" if asked.pipeline_parallel > 1 else ""
        what = f"{size}{stages} divides none of the numbers of processes that {instance.name} takes: {_list(allowed)}"
        raise ConfigError([Problem("launcher.tensor_parallel", what)])
    for processes in reversed(divisible):
        if asked.global_batch % _rows(asked, processes, size) == 0:
            return processes
    raise ConfigError([_batch_problem(asked, divisible[0], size)])


def _given_processes(instance: Instance, asked: Asked, size: int) -> int:
    problems = []
    allowed = [instance.cores] if asked.nodes > 1 else list(instance.groups)
    if asked.processes not in allowed:
        where = f"{instance.name} takes {_list(allowed)}" + (" when there are several nodes" if asked.nodes > 1 else "")
        problems.append(Problem("--processes", f"{where}, got {asked.processes}; 0 decides by itself"))
    if what := _why_not_processes(asked, asked.processes, size):
        problems.append(Problem("--processes", what))
    elif asked.global_batch % _rows(asked, asked.processes, size):
        problems.append(_batch_problem(asked, asked.processes, size))
    if problems:
        raise ConfigError(problems)
    return asked.processes


def _why_not_processes(asked: Asked, processes: int, size: int) -> str | None:
    """A node holds whole tensor-parallel groups; all nodes together hold whole replicas."""
    if processes % size:
        return f"must be a multiple of launcher.tensor_parallel, {size}, got {processes}"
    if asked.nodes * processes % (size * asked.pipeline_parallel):
        of = f"{size} × {asked.pipeline_parallel}"
        return f"{asked.nodes} × {processes} must be a multiple of launcher.tensor_parallel × launcher.pipeline_parallel, {of}"
    return None


def _rows(asked: Asked, processes: int, size: int) -> int:
    """Rows that one forward pass of all replicas takes."""
    return asked.replicas(processes, size) * asked.micro_batch


def _batch_problem(asked: Asked, processes: int, size: int) -> Problem:
    rows = _rows(asked, processes, size)
    what = (
        f"must be a multiple of replicas × micro batch = {rows // asked.micro_batch} × {asked.micro_batch} = {rows}, "
        f"got {asked.global_batch}; use another --global-batch, or fewer nodes"
    )
    return Problem("--global-batch", what)


def _why_idle(instance: Instance, asked: Asked, size: int) -> str:
    if asked.processes:
        return f"--processes is {asked.processes}"
    replicas = asked.replicas(instance.cores, size)
    return f"a global batch of {asked.global_batch} does not divide by {replicas} replicas × micro batch {asked.micro_batch}"


def _list(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)


def has_fused_qkv(config: Mapping[str, Any], tensor_parallel: int) -> bool:
    """Whether optimum-neuron fuses q, k and v into one layer with replicated KV heads (its modeling_llama.py:316)."""
    kv_heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return kv_heads < tensor_parallel or kv_heads % tensor_parallel != 0


def why_not_split(config: Mapping[str, Any], tensor_parallel: int) -> list[str]:
    """What of the model does not divide by this tensor parallelism, in words; empty if all does."""
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    copies = max(1, tensor_parallel // kv_heads)
    sizes = {
        "num_attention_heads": heads,
        f"num_key_value_heads × {copies}": kv_heads * copies,
        "intermediate_size": int(config["intermediate_size"]),
        "vocab_size": int(config["vocab_size"]),
    }
    return [f"{name} = {size}" for name, size in sizes.items() if size % tensor_parallel]
