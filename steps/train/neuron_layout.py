"""Which processes, tensor and data parallelism a model gets on a Neuron instance, and what the neuron backend refuses. Pure.

Called before anything is submitted, and by `neuron_backend` once more. The table's rule, in one sentence: the smallest tensor
parallelism whose share of the bf16 weights fits a quarter of a core's memory, then as many processes as the global batch can
feed. Less tensor parallelism means less communication; the other three quarters are for activations and the compiler's scratch
(computed, not measured: nobody here has run it on the device).

| model (Llama) | bf16 weights | trn1.32xlarge (32 cores, 16 GiB each) | trn2.48xlarge (64 logical cores, 24 GiB each) |
|---|---|---|---|
| 3.2 1B | 2.3 GiB | TP=1, DP=32 | TP=1, DP=64 |
| 3.2 3B | 6.0 GiB | TP=2, DP=16 | TP=1, DP=64 |
| 3.1 8B | 15.0 GiB | TP=8, DP=4 | TP=4, DP=16 |

trn1 takes no TP=4: groups of 4 are not among its collectives' sizes. On several nodes DP grows with them. A global batch that
cannot feed every replica leaves cores idle, and the reasons say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steps.errors import ConfigError, Problem

GIB = 1024**3
WEIGHTS_SHARE = 0.25
"""Of a core's memory."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A Neuron instance type."""

    name: str
    processes: tuple[int, ...]
    """Processes per node that its collectives allow, all cores last."""
    core_gib: float
    """Device memory of one (logical) core."""
    tensor_parallel: tuple[int, ...]
    """Sizes of tensor-parallel groups, the smallest first."""

    @property
    def cores(self) -> int:
        """One process each."""
        return self.processes[-1]


INSTANCES = {
    item.name: item
    for item in (
        Instance("trn1.2xlarge", (1, 2), 16.0, (1, 2)),
        Instance("trn1.32xlarge", (1, 2, 8, 32), 16.0, (1, 2, 8, 32)),
        Instance("trn1n.32xlarge", (1, 2, 8, 32), 16.0, (1, 2, 8, 32)),
        Instance("trn2.3xlarge", (1, 2, 4), 24.0, (1, 2, 4)),
        Instance("trn2.48xlarge", (1, 4, 16, 64), 24.0, (1, 4, 16, 64)),
    )
}
"""trn2 with its default of two physical cores to a logical one (LNC=2)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Who computes what."""

    nodes: int
    processes: int
    """Per node."""
    tensor_parallel: int
    reasons: tuple[str, ...]
    """In words, for the plan and the manifest."""

    @property
    def data_parallel(self) -> int:
        """Replicas of the model; ZeRO-1 shards the optimizer over them."""
        return self.nodes * self.processes // self.tensor_parallel


def find_instance(name: str) -> Instance:
    """The instance type; SageMaker's `ml.` in front is ignored.

    Raises:
        ConfigError: not in the table.
    """
    found = INSTANCES.get(name.removeprefix("ml."))
    if found is None:
        what = f"{name!r} is not a Neuron instance type known here; known: {', '.join(INSTANCES)}"
        raise ConfigError([Problem("launcher.instance_type", what)])
    return found


def weight_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of a Llama-like model's bf16 weights, from its config.json."""
    hidden, layers, heads = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    head_size = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    attention = 2 * hidden * head_size * (heads + kv_heads)
    layer = attention + 3 * hidden * int(config["intermediate_size"]) + 2 * hidden
    embeddings = int(config["vocab_size"]) * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return 2 * (layers * layer + embeddings + hidden)


def choose_layout(
    config: Mapping[str, Any], instance: Instance, *, nodes: int, global_batch: int, micro_batch: int
) -> Layout:
    """The layout by the table's rule.

    Raises:
        ConfigError: the model does not fit the instance, or the global batch does not fit any number of processes.
    """
    weights = weight_bytes(config) / GIB
    room = instance.core_gib * WEIGHTS_SHARE
    fitting = [size for size in instance.tensor_parallel if weights / size <= room and not why_not_split(config, size)]
    if not fitting:
        sizes = ", ".join(str(size) for size in instance.tensor_parallel)
        what = (
            f"{weights:.1f} GiB of bf16 weights do not fit {instance.name}: none of its tensor-parallel sizes ({sizes}) "
            f"leaves at most {room:g} GiB to a core and divides the model; use a larger instance, or a smaller model"
        )
        raise ConfigError([Problem("launcher.instance_type", what)])
    tensor_parallel = fitting[0]
    processes = _processes(instance, nodes, tensor_parallel, global_batch, micro_batch)
    reasons = [
        f"tensor parallel {tensor_parallel}: the smallest that leaves {weights / tensor_parallel:.1f} GiB of bf16 weights "
        f"to a core of {instance.core_gib:g} GiB ({WEIGHTS_SHARE:.0%} are allowed)",
        f"data parallel {nodes * processes // tensor_parallel}: {nodes} × {processes} processes / {tensor_parallel}; "
        "ZeRO-1 shards the optimizer over it",
    ]
    if processes < instance.cores:
        reasons.append(
            f"{instance.cores - processes} of {instance.cores} cores stay idle: a global batch of {global_batch} does not "
            f"divide by {nodes * instance.cores // tensor_parallel} replicas × micro batch {micro_batch}"
        )
    return Layout(nodes, processes, tensor_parallel, tuple(reasons))


def _processes(instance: Instance, nodes: int, tensor_parallel: int, global_batch: int, micro_batch: int) -> int:
    # Several nodes only work together with all their cores.
    allowed = [instance.cores] if nodes > 1 else [size for size in instance.processes if size % tensor_parallel == 0]
    for processes in reversed(allowed):
        if global_batch % (nodes * processes // tensor_parallel * micro_batch) == 0:
            return processes
    replicas = nodes * allowed[0] // tensor_parallel
    what = (
        f"must be a multiple of replicas × micro batch = {replicas} × {micro_batch} = {replicas * micro_batch}, "
        f"got {global_batch}; use another --global-batch, or fewer nodes"
    )
    raise ConfigError([Problem("--global-batch", what)])


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
