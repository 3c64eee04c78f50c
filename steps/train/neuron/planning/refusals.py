"""What the neuron backend cannot do, found before anything is submitted, each with what to use instead. Pure.

The limits are optimum-neuron 0.4.5's. Where it would fail late, the check saves an hour in the queue; where it would go on
and train something else in silence (rank patterns, DoRA, warm starts, bf16 without sequence parallel), only a check can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from steps.errors import ConfigError, Problem
from steps.settings.catalog import ALL_LINEAR
from steps.settings.checks import LLAMA_LINEAR
from steps.settings.plan import Training
from steps.train.neuron.planning.layout import has_fused_qkv, why_not_split

MODEL_TYPES = ("llama", "qwen3")
BROKEN = {
    "granite": "granite is not trained: optimum-neuron 0.4.5's Granite takes no notice that the loss is to be a sum "
    "(modeling_granite.py:24 imports transformers' own ForCausalLMLoss), and its gradients and losses would be divided by the "
    "targets twice, in silence"
}
"""Models that the library has and gets wrong, each with the reason."""
TARGETS = (*LLAMA_LINEAR, "embed_tokens")
GATE_UP = ("gate_proj", "up_proj")
QKV = ("q_proj", "k_proj", "v_proj")
FLASH_LENGTH = 2048
"""The flash-attention kernel takes multiples of this sequence length."""


class LaidOut(Protocol):
    """What is looked at: a `TrainSpec`, or the `Plan` that becomes one."""

    @property
    def training(self) -> Training: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def tensor_parallel(self) -> int: ...
    @property
    def pipeline_parallel(self) -> int: ...


def linear_targets(spec: LaidOut) -> tuple[str, ...]:
    """The LoRA targets by name; `all-linear` is not understood by the library."""
    return LLAMA_LINEAR if spec.training.lora.targets == (ALL_LINEAR,) else spec.training.lora.targets


def sharing_note(spec: LaidOut, config: Mapping[str, Any]) -> str:
    """Which targets share one lora_A here and have one each in PEFT, so that losses differ from torch's, in words; "" if none."""
    targets = linear_targets(spec)
    fused = [*(QKV if has_fused_qkv(config, spec.tensor_parallel) else ()), *GATE_UP]
    shared = [name for name in fused if name in targets]
    if not shared:
        return ""
    alike = ",".join(name for name in targets if name not in shared)
    where = f" (--lora-targets {alike} trains alike on both)" if alike else ""
    groups = " and ".join(
        "/".join(name for name in group if name in shared) for group in (QKV, GATE_UP) if set(group) & set(shared)
    )
    return f"{groups}: one lora_A for each group, fewer weights and other losses than the torch backend's{where}"


def attention_of(*, packed: bool, sequence_length: int) -> str:
    """`flash_attention_2` where the kernel can be used, else `eager`.

    The kernel knows only the causal mask, so packed samples would see each other: packed rows always get eager attention
    with a mask that isolates them. Unpacked rows are padded on the right, where causal attention never looks.
    """
    return "eager" if packed or sequence_length % FLASH_LENGTH else "flash_attention_2"


def check_training(spec: LaidOut, config: Mapping[str, Any], *, world: int) -> None:
    """Hold a training against the model's config.json and the number of processes.

    Raises:
        ConfigError: with everything that the neuron backend cannot do.
    """
    problems = [*_method_problems(spec), *_target_problems(spec, config), *_layout_problems(spec, config, world)]
    if spec.pipeline_parallel > 1:
        problems += _pipeline_problems(spec, config, world)
    if (model_type := config.get("model_type")) not in MODEL_TYPES:
        why = BROKEN.get(str(model_type), f"got {model_type!r}")
        what = f"the neuron backend trains {' and '.join(MODEL_TYPES)}; {why}; use the torch backend"
        problems.insert(0, Problem("--model", what))
    if problems:
        raise ConfigError(problems)


def _method_problems(spec: LaidOut) -> list[Problem]:
    found = {
        "--sharding": "fsdp does not exist there; the neuron backend shards weights by launcher.tensor_parallel and the "
        "optimizer by ZeRO-1, always: use --sharding auto"
        if spec.training.sharding == "fsdp"
        else "",
        "--quantization": "4bit does not exist there; use --quantization none"
        if spec.training.quantization != "none"
        else "",
        "--method": "dora loses its magnitudes when the shards are put together; use lora or rslora"
        if spec.training.lora.method == "dora"
        else "",
        "--init-adapter": "gate and up share one lora_A there (under replicated KV q, k and v too), so an adapter made "
        "elsewhere cannot be taken over without loss; start fresh, or use the torch backend"
        if spec.training.lora.init_adapter
        else "",
    }
    return [Problem(path, f"on the neuron backend, {what}") for path, what in found.items() if what]


def _target_problems(spec: LaidOut, config: Mapping[str, Any]) -> list[Problem]:
    targets = set(linear_targets(spec))
    messages = []
    if unknown := sorted(targets - set(TARGETS)):
        messages.append(f"{', '.join(unknown)} cannot be trained on the neuron backend; it takes {', '.join(TARGETS)}")
    messages += _parts_of(GATE_UP, targets, why="the MLP is fused into one layer")
    if has_fused_qkv(config, spec.tensor_parallel):
        why = f"tensor parallel {spec.tensor_parallel} replicates the KV heads and fuses the three into one layer"
        messages += _parts_of(QKV, targets, why=why)
    if "embed_tokens" in targets and config.get("tie_word_embeddings"):
        messages.append("embed_tokens is tied to lm_head in this model, and merging would change both; leave it out")
    return [Problem("--lora-targets", message) for message in messages]


def _parts_of(group: tuple[str, ...], targets: set[str], *, why: str) -> list[str]:
    given = [name for name in group if name in targets]
    if not given or len(given) == len(group):
        return []
    return [
        f"{', '.join(given)} without {', '.join(set(group) - set(given))}: {why}; name all of {', '.join(group)}, or none"
    ]


def _layout_problems(spec: LaidOut, config: Mapping[str, Any], world: int) -> list[Problem]:
    size = spec.tensor_parallel
    problems = []
    if world % size:
        what = f"must divide the number of processes, {world}, got {size}"
        problems.append(Problem("launcher.tensor_parallel", what))
    if undivided := why_not_split(config, size):
        what = f"{size} does not divide the model's {', '.join(undivided)}; use one that divides all, 1 always does"
        problems.append(Problem("launcher.tensor_parallel", what))
    if spec.sequence_length % size:
        what = (
            f"must be a multiple of tensor parallel, {size} (the sequence is split over it), got {spec.sequence_length}"
        )
        problems.append(Problem("--sequence-length", what))
    return problems


def _pipeline_problems(spec: LaidOut, config: Mapping[str, Any], world: int) -> list[Problem]:
    stages, layers = spec.pipeline_parallel, int(config["num_hidden_layers"])
    messages = []
    if layers < stages:
        messages.append(f"{stages} stages need as many layers, and the model has {layers}")
    if world % (stages * spec.tensor_parallel):
        of = f"{spec.tensor_parallel} × {stages}"
        messages.append(f"tensor × pipeline parallel, {of}, must divide the number of processes, {world}")
    if linear_targets(spec) == ("embed_tokens",):
        messages.append("embed_tokens alone gives the later stages nothing to train; add targets in the layers")
    return [
        Problem("launcher.pipeline_parallel", f"{message}; use 1, or launcher.tensor_parallel") for message in messages
    ]


def check_sequence_parallel(*, tensor_parallel: int, is_on: bool, precision: str) -> None:
    """Without sequence parallel, bf16 gradients are wrong: neuronx-distributed all-reduces an fp32 copy of a layer's input
    gradient and drops it (parallel_layers/layers_utils.py:91-103 of v2.26), so each rank goes on with its own part.

    Raises:
        ConfigError: tensor parallel, bf16, and sequence parallel off.
    """
    if tensor_parallel > 1 and precision == "bf16" and not is_on:
        what = "must be on for tensor parallelism in bf16: without it neuronx-distributed computes wrong gradients"
        raise ConfigError([Problem("sequence_parallel", what)])
