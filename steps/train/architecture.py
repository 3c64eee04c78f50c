"""Can this architecture be trained as planned, and its adapter be merged? Asked in `start`, before and after weights are fetched.

Loads torch and transformers only for architectures that the project does not know by heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, ModelError, Problem
from steps.protocol.safetensors_header import DTYPE_NAMES, StoredTensor, read_header
from steps.protocol.weight_names import STACKED, stored_name
from steps.settings.catalog import ALL_LINEAR
from steps.settings.checks import LLAMA_LINEAR
from steps.settings.plan import Plan
from steps.train.pytorch.attention import PLAIN_CAUSAL

LONGEST_LIST = 3


def fit_to_architecture(plan: Plan, config: Mapping[str, Any]) -> Plan:
    """The plan, unpacked where packing would let samples see each other and nobody asked for it. `config`: config.json.

    Raises:
        ConfigError: with everything about the model that training or merging cannot do.
    """
    problems = [*_quantised(config)]
    if problems or plan.settings.launcher.backend == "neuron" or _is_known_by_heart(plan, config):
        _raise(problems)
        return plan
    from steps.train.pytorch import skeleton
    from steps.train.pytorch.probe import probe

    model = skeleton.build(config)
    lora = plan.training.lora
    problems += skeleton.target_problems(model, lora.targets, method=lora.method, dropout=lora.dropout)
    found = probe(config)
    if not found.is_causal:
        what = f"{config.get('model_type')} models see the tokens after each one, so they do not learn to write text"
        problems.insert(0, Problem("--model", f"{what}; give a decoder"))
    reason = found.why_not_packed if plan.packing else ""
    if reason and "packing" in plan.given:
        problems.append(Problem("--packing", f"on, but {reason}; use --packing auto or off"))
    _raise(problems)
    return plan.model_copy(update={"packing": False, "packing_reason": reason}) if reason else plan


def _is_known_by_heart(plan: Plan, config: Mapping[str, Any]) -> bool:
    """Packing is proven by this project's own tests, and the modules are named as in Llama."""
    return config.get("model_type") in PLAIN_CAUSAL and {*plan.training.lora.targets} <= {ALL_LINEAR, *LLAMA_LINEAR}


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise ConfigError(problems)


def _quantised(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Training could go on such a base; its weights cannot be added to."""
    quantisation = config.get("quantization_config")
    if not quantisation:
        return
    method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else "unknown"
    what = f"its weights are quantised ({method}), so an adapter cannot be merged into them"
    yield Problem("--model", f"{what}; give the unquantised model (with --quantization 4bit it takes as little memory)")


def check_weights(plan: Plan, config: Mapping[str, Any], folder: Path) -> None:
    """Hold the names, shapes and types in the weight files against the modules that get an adapter.

    Raises:
        ConfigError: some of them could not be merged.
        ModelError: a file is damaged.
    """
    stored = {
        tensor.name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for tensor in read_header(file, error=ModelError).tensors
    }
    expected = _expected(plan, config)
    missing = [name for name in expected if not stored_name(name, stored)]
    if missing:
        some = ", ".join(missing[:LONGEST_LIST]) + (", …" if len(missing) > LONGEST_LIST else "")
        there = ", ".join(sorted(stored)[:LONGEST_LIST])
        raise ConfigError(
            [
                Problem(
                    "--model",
                    f"its files have no weights for {len(missing)} of {len(expected)} modules to be adapted ({some}; they "
                    f"hold {there}, …): the adapter could not be merged; load it with transformers and save it again",
                )
            ]
        )
    _raise([*_unmergeable(expected, stored)])


def _unmergeable(expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor]) -> Iterator[Problem]:
    for name, shape in expected.items():
        tensor = stored[stored_name(name, stored)]
        if tensor.dtype not in DTYPE_NAMES.values():
            what = f"{tensor.name} is stored as {tensor.dtype}: only BF16, F16 and F32 weights can be merged"
            yield Problem("--model", f"{what}; give the unquantised model")
            return
        if shape and shape != tensor.shape:
            what = (
                f"{tensor.name} has shape {list(tensor.shape)}, its config.json asks for {list(shape)}; fetch it again"
            )
            yield Problem("--model", what)
            return


def _expected(plan: Plan, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Weight → shape of every module that gets an adapter; empty shapes where they are not looked at."""
    targets = plan.training.lora.targets
    if _is_known_by_heart(plan, config):
        places = {name: "self_attn" if name in LLAMA_LINEAR[:4] else "mlp" for name in LLAMA_LINEAR}
        chosen = LLAMA_LINEAR if targets == (ALL_LINEAR,) else targets
        layers = range(int(config.get("num_hidden_layers", 0)))
        return {f"model.layers.{layer}.{places[name]}.{name}.weight": () for layer in layers for name in chosen}
    from steps.train.pytorch import skeleton

    model = skeleton.build(config)
    head = model.get_output_embeddings()
    is_tied = skeleton.is_tied(model)
    found = {
        f"{name}.weight": tuple(int(size) for size in module.get_parameter("weight").shape)
        for name, module in skeleton.adapted(model, targets).items()
        if not (is_tied and module is head)  # its bytes are the embedding's
    }
    return found | _in_files(skeleton.stacked(model, targets))


def _in_files(stacked: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Parameters that transformers stacks while it loads, as files have them: each expert's matrices by themselves."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in stacked.items():
        owner, _, parameter = name.rpartition(".")
        parts = STACKED.get(parameter)
        if not parts or len(shape) != 3:
            found[name] = shape
            continue
        matrix = (shape[1] // len(parts), shape[2])
        found |= {f"{owner}.{expert}.{part}.weight": matrix for expert in range(shape[0]) for part in parts}
    return found
