"""What a PEFT adapter changes in a base model: pure, from its adapter_config.json and its tensors' names and shapes.

`changes_of` answers, for each weight of the base, what is added to it (`LowRank`) or put in its place. Whatever is not plain
LoRA, rsLoRA or DoRA is refused by name: a merge that leaves something out in silence would be a wrong model. Computes nothing and
opens no file; `arithmetic` does the sums.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from steps.errors import CheckpointError
from steps.merge import experts
from steps.protocol.weight_names import HEADS, STACKED

Shape = tuple[int, ...]

PREFIX = "base_model.model."
PART = re.compile(r"^(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?$")
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt"})
"""model_type values whose linear layers are transformers' Conv1D: weights stored as (in, out)."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""init_lora_weights values (or their beginnings) that also changed the base's weights when the training began."""

REFUSED = {
    "layer_replication": "it repeats layers of the base (layer_replication)",
    "trainable_token_indices": "it trains single rows of the embedding (trainable_token_indices)",
    "megatron_config": "it is for Megatron's layers (megatron_config)",
    "use_qalora": "it is a QALoRA adapter (use_qalora)",
    "lora_bias": "it has biases of its own (lora_bias)",
    "alora_invocation_tokens": "it is an activated LoRA, which acts on some tokens only (alora_invocation_tokens)",
}
WITHOUT_EFFECT_ON_A_MERGE = frozenset(
    {
        *(
            "auto_mapping",
            "base_model_name_or_path",
            "peft_type",
            "peft_version",
            "revision",
            "task_type",
            "inference_mode",
        ),
        *(
            "target_modules",
            "target_parameters",
            "exclude_modules",
            "layers_pattern",
            "layers_to_transform",
            "modules_to_save",
            "bias",
        ),
        *(
            "corda_config",
            "eva_config",
            "loftq_config",
            "lora_dropout",
            "megatron_core",
            "qalora_group_size",
            "runtime_config",
        ),
    }
)
"""Settings that say how it was trained, or that show in the tensors' names."""
READ = frozenset(
    {
        "alpha_pattern",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "r",
        "rank_pattern",
        "use_dora",
        "use_rslora",
    }
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """`scale · up @ down` is added to a weight; with `magnitude` (DoRA) each row is then scaled to that length."""

    down: str
    """Adapter tensor of shape (rank, in)."""
    up: str
    """Adapter tensor of shape (out, rank)."""
    scale: float
    transposed: bool = False
    """The base stores this weight as (in, out): Conv1D, embeddings."""
    magnitude: str | None = None
    """Adapter tensor of shape (out,)."""
    share: experts.Share | None = None
    """Of an adapter on stacked experts: what of `down` and `up` is this weight's."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one weight: first it is replaced, if so asked, then the product is added."""

    low_rank: LowRank | None = None
    replacement: str | None = None
    """Adapter tensor of the weight's own shape (modules_to_save, trained biases, saved embeddings)."""


def changes_of(config: Mapping[str, Any], shapes: Mapping[str, Shape], *, model_type: str) -> dict[str, Change]:
    """The change of each base weight, by the weight's name; `shapes` are those of the adapter's tensors.

    Raises:
        CheckpointError: the adapter is of a kind that cannot be merged, or is incomplete.
    """
    refuse_unknown_kinds(config)
    parts: dict[str, dict[str, str]] = {}
    changes: dict[str, Change] = {}
    for name in shapes:
        if not name.startswith(PREFIX):
            raise CheckpointError(f"adapter tensor {name}: expected a name that begins with {PREFIX}")
        short = name.removeprefix(PREFIX)
        if match := PART.match(short):
            parts.setdefault(match["module"], {})[match["part"]] = name
        else:
            weight = short.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            changes[weight] = Change(replacement=name)
    for module, found in parts.items():
        if stacked := experts.parameter_of(module, config):
            changes |= _of_experts(*stacked, found, config, shapes)
            continue
        weight = f"{module}.weight"
        low_rank = _low_rank(module, found, config, shapes, model_type)
        changes[weight] = replace(changes.get(weight, Change()), low_rank=low_rank)
    if not changes:
        raise CheckpointError("the adapter holds no tensor: nothing was trained, or its file is not the one PEFT saved")
    return changes


def refuse_unknown_kinds(config: Mapping[str, Any]) -> None:
    """Refuse, by name, adapters whose mathematics is not LoRA's, rsLoRA's or DoRA's.

    Raises:
        CheckpointError: with the kind and what to do.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        _refuse(f"its peft_type is {kind}, expected LORA")
    for key, what in REFUSED.items():
        if config.get(key):
            _refuse(what)
    if what := experts.why_not(config):
        _refuse(what)
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        _refuse(
            f"it began with init_lora_weights={start!r}, which changed the base's weights as well "
            "(PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) turns it into a plain LoRA)"
        )
    if config.get("use_dora") and config.get("fan_in_fan_out"):
        _refuse("it is a DoRA adapter on layers that store (in, out) (use_dora with fan_in_fan_out)")
    for key, value in config.items():
        if value and key not in WITHOUT_EFFECT_ON_A_MERGE | READ | REFUSED.keys():
            _refuse(f"its adapter_config.json has {key}={value!r}, which this version does not know")


def _refuse(what: str) -> None:
    raise CheckpointError(f"this adapter cannot be merged: {what}; merge it with PEFT's merge_and_unload instead")


def _low_rank(
    module: str, found: Mapping[str, str], config: Mapping[str, Any], shapes: Mapping[str, Shape], model_type: str
) -> LowRank:
    embedding = "embedding_A" in found or "embedding_B" in found
    down, up = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    missing = [f"lora_{part}" for part in (down, up) if part not in found]
    use_dora = bool(config.get("use_dora"))
    if use_dora and "magnitude_vector" not in found:
        missing.append("lora_magnitude_vector")
    if missing:
        raise CheckpointError(f"the adapter is incomplete: {module} has no {' and no '.join(missing)}")
    if use_dora and embedding:
        _refuse(f"it is a DoRA adapter on an embedding ({module})")
    rank = _by_pattern(module, config.get("rank_pattern"), config.get("r"))
    shape_down, shape_up = shapes[found[down]], shapes[found[up]]
    if len(shape_down) != 2 or len(shape_up) != 2:
        _refuse(f"{module} is no linear or embedding layer (lora_A has {len(shape_down)} dimensions)")
    if (shape_down[0], shape_up[1]) != (rank, rank):
        raise CheckpointError(
            f"{module}: adapter_config.json says rank {rank}, the tensors have shapes {list(shape_down)} and "
            f"{list(shape_up)}; config and weights are not of the same adapter"
        )
    return LowRank(
        down=found[down],
        up=found[up],
        scale=_scale(_by_pattern(module, config.get("alpha_pattern"), config.get("lora_alpha")), rank, config),
        transposed=embedding or (f"{module}.weight" not in HEADS and _stores_in_out(config, model_type)),
        magnitude=found["magnitude_vector"] if use_dora else None,
    )


def _of_experts(
    owner: str, parameter: str, found: Mapping[str, str], config: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, Change]:
    """The change of every single expert's weights."""
    if found.keys() != {"A", "B"}:
        raise CheckpointError(
            f"the adapter is incomplete: {owner}.{parameter} has {', '.join(found)}, expected A and B"
        )
    name = f"{owner}.{parameter}"
    rank = _by_pattern(name, config.get("rank_pattern"), config.get("r"))
    scale = _scale(_by_pattern(name, config.get("alpha_pattern"), config.get("lora_alpha")), rank, config)
    down, up = shapes[found["A"]], shapes[found["B"]]
    parts = len(STACKED[parameter])
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or down[0] % rank or up[0] % parts:
        raise CheckpointError(
            f"{name}: adapter_config.json says rank {rank}, the tensors have shapes {list(down)} and {list(up)}; config and "
            "weights are not of the same adapter"
        )
    return {
        weight: Change(LowRank(found["A"], found["B"], scale, share=share))
        for weight, share in experts.matrices(owner, parameter, down[0] // rank)
    }


def _by_pattern(module: str, patterns: Mapping[str, Any] | None, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name wins."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    if not isinstance(default, int | float):
        raise CheckpointError(f"adapter_config.json: rank or alpha of {module} is {default!r}, expected a number")
    return default


def _scale(alpha: float, rank: int, config: Mapping[str, Any]) -> float:
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _stores_in_out(config: Mapping[str, Any], model_type: str) -> bool:
    """PEFT saves the flag as the layer's type asks for; an older or edited config may lack it for Conv1D.

    It is for the whole adapter, and wrong for the head, which is a Linear in these models too: PEFT ignores it there.
    """
    return model_type in CONV1D_MODELS or bool(config.get("fan_in_fan_out"))


def check_fits(changes: Mapping[str, Change], adapter: Mapping[str, Shape], base: Mapping[str, Shape]) -> None:
    """Hold every change against the base's shapes.

    Raises:
        CheckpointError: naming the first weight that is missing or of another shape.
    """
    for weight, change in changes.items():
        if weight not in base:
            near = ", ".join(sorted(name for name in base if name.endswith(weight.split(".")[-2] + ".weight"))[:3])
            raise CheckpointError(
                f"the adapter does not belong to this base: it changes {weight}, which the base does not have"
                f"{f' (it has {near}, …)' if near else ''}; merge it with the model that it was trained on"
            )
        for expected, source in _expected_shapes(change, adapter):
            if expected != base[weight]:
                raise CheckpointError(
                    f"the adapter does not belong to this base: {source} is for a {weight} of shape {list(expected)}, "
                    f"the base's has {list(base[weight])}; merge it with the model that it was trained on"
                )


def _expected_shapes(change: Change, adapter: Mapping[str, Shape]) -> list[tuple[Shape, str]]:
    expected = [(adapter[change.replacement], change.replacement)] if change.replacement else []
    if low := change.low_rank:
        shape = (adapter[low.up][0] // (low.share.parts if low.share else 1), adapter[low.down][1])
        expected.append((shape[::-1] if low.transposed else shape, f"{low.up} × {low.down}"))
    return expected
