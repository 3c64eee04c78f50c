"""A model's modules without its weights: built on the meta device from config.json, in a second for any size.

Asked by `train.architecture`, and by `model` for the modules that belong to no language model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from steps.errors import ConfigError, Problem
from steps.library_versions import plain_floats
from steps.settings.catalog import ALL_LINEAR
from steps.settings.section import suggest

if TYPE_CHECKING:
    from torch import nn


def build(config: Mapping[str, Any]) -> Any:
    """The model that training would load.

    Raises:
        ConfigError: transformers has no such causal language model.
    """
    import transformers
    from transformers import AutoConfig

    model_type = config.get("model_type")
    try:
        given = {key: plain_floats(value) for key, value in config.items() if key != "quantization_config"}
        known = AutoConfig.for_model(**given)
        return empty_model(known)
    except Exception as error:  # a foreign config.json can fail anywhere in its architecture's code
        reason = str(error).split("\n")[0][:200]
        what = f"transformers {transformers.__version__} makes no causal language model of {model_type!r} ({reason})"
        raise ConfigError([Problem("--model", f"{what}; models with code of their own are not run")]) from error


def empty_model(config: Any) -> Any:
    """The model of a transformers config, its parameters on the meta device."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except NotImplementedError:  # its constructor looks at values; then everything but the parameters is real
        with init_empty_weights():
            return AutoModelForCausalLM.from_config(config)


def is_linear(module: nn.Module) -> bool:
    """What PEFT counts among `all-linear`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def outside_language(model: Any) -> list[str]:
    """Highest modules with linear layers that belong to no language model: vision and audio towers, projectors."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    language = names.get(decoder, "")
    if not language:
        return []
    outside = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not head and not name.startswith(f"{language}.")
    ]
    inside = set(_parents(language)) | {""}
    tops = {next(parent for parent in [*_parents(name), name] if parent not in inside) for name in outside}
    return sorted(tops)


def _parents(name: str) -> list[str]:
    """`a.b.c` → a, a.b."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _routers(model: Any) -> list[str]:
    """Linear layers that give something else than a linear layer's output, as Phi-3.5 MoE's routers: PEFT takes them for such."""
    from torch import nn

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "Router" in type(module).__name__
    ]


def exclusion(model: Any) -> str | None:
    """PEFT's `exclude_modules` that keeps adapters in the language model and off routers; None where nothing else is there."""
    tops = [*outside_language(model), *_routers(model)]
    return rf"^(?:.*\.)?({'|'.join(re.escape(top) for top in tops)})(\..*)?$" if tops else None


def adapted(model: Any, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules that get an adapter, by name."""
    head, exclude = model.get_output_embeddings(), exclusion(model)
    return {
        name: module
        for name, module in model.named_modules()
        if (is_linear(module) and module is not head if targets == (ALL_LINEAR,) else _matches(name, targets))
        and not (exclude and re.match(exclude, name))
    }


def _matches(name: str, targets: tuple[str, ...]) -> bool:
    """PEFT's rule: the end of the name, or a pattern for all of it."""
    return any(name == target or name.endswith(f".{target}") or _fits(target, name) for target in targets)


def _fits(pattern: str, name: str) -> bool:
    if not set(pattern) & set("*[(|\\"):
        return False
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def stacked(model: Any, targets: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Parameters outside of layers that PEFT adapts for these targets, and their shapes: experts that transformers 5 stacks."""
    names = getattr(_under_peft(model, targets), "targeted_parameter_names", ())
    return {name: tuple(int(size) for size in model.get_parameter(name).shape) for name in names}


def target_problems(model: Any, targets: tuple[str, ...], *, method: str, dropout: float = 0.0) -> list[Problem]:
    """What is wrong with the LoRA targets for this model, or with the model for LoRA."""
    if model.get_output_embeddings() is None:
        name = type(model).__name__
        return [Problem("--model", f"{name} does not say which layer makes its logits (get_output_embeddings is None)")]
    problems = [problem for target in targets for problem in _wrong_target(model, target)]
    if not problems:
        problems = [*_unmergeable(model, list(adapted(model, targets).values()), method=method)]
    return problems or [*_refused_by_peft(model, targets, method=method, dropout=dropout)]


def _wrong_target(model: Any, target: str) -> Iterator[Problem]:
    from torch import nn

    linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)})
    found = adapted(model, (target,))
    if not found:
        what = f"the model has no module {target!r}{suggest(target, linear)}; it has {', '.join(linear)}"
        yield Problem("--lora-targets", what)
    for name, module in found.items():
        if not (is_linear(module) or isinstance(module, nn.Embedding)):
            what = f"{target!r} is {name}, a {type(module).__name__} and no linear layer"
            yield Problem("--lora-targets", f"{what}; use {', '.join(linear)}")
            return


def _unmergeable(model: Any, modules: list[nn.Module], *, method: str) -> Iterator[Problem]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if method == "dora" and any(isinstance(module, Conv1D | nn.Embedding) for module in modules):
        what = (
            "dora cannot be merged into embeddings and layers that store (in, out), as this model's; use lora or rslora"
        )
        yield Problem("--method", what)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if is_tied(model) and model.config.get_text_config() is not model.config and any(end in modules for end in ends):
        what = "this multimodal model ties its embedding to its head, which cannot be merged with an adapter on either"
        yield Problem("--lora-targets", f"{what}; leave them out")


def is_tied(model: Any) -> bool:
    """Input and output embedding are one weight."""
    return bool(model.config.get_text_config().tie_word_embeddings)


def _refused_by_peft(model: Any, targets: tuple[str, ...], *, method: str, dropout: float) -> Iterator[Problem]:
    """PEFT knows layers that its adapters do not suit, such as Mamba's, and what stacked experts cannot have: dropout, DoRA."""
    try:
        _under_peft(model, targets, use_dora=method == "dora", lora_dropout=dropout)
    except ValueError as error:
        yield Problem("--lora-targets", f"{','.join(targets)}: {error}")


def _under_peft(model: Any, targets: tuple[str, ...], **options: Any) -> Any:
    """A copy of the model with PEFT's adapters, all on the meta device."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    names = ALL_LINEAR if targets == (ALL_LINEAR,) else list(targets)
    config = LoraConfig(r=1, target_modules=names, exclude_modules=exclusion(model), task_type="CAUSAL_LM", **options)
    return LoraModel(copy.deepcopy(model), config, "default", low_cpu_mem_usage=True)
