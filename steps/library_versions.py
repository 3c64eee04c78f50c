"""What differs between the libraries' versions that this project runs with, each with its reason; all other code is the same.

Tested are two sets: today's of requirements.lock (transformers 5, peft 0.21, huggingface_hub 2), and optimum-neuron 0.4.5's of
requirements-neuron.lock (transformers 4.57, peft 0.17, huggingface_hub 0.36; `make test-neuron-pins`). Importing this loads none.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import platform
import sys
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

TOLD = (
    *(
        "metaflow",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "tokenizers",
        "safetensors",
        "datasets",
        "bitsandbytes",
    ),
    *("optimum-neuron", "torch-neuronx", "neuronx-cc"),
)
"""Distributions whose versions decide what a training computes; those that are not installed are left out."""
HTTP_LIBRARIES = ("httpx2", "httpx")
"""What huggingface_hub speaks through since 1.0, the newest first; before, requests, whose errors are OSErrors."""


def installed_versions() -> dict[str, str]:
    """Distribution → version, of those in TOLD that are installed here; and of Python."""
    found = {"python": platform.python_version()}
    for name in TOLD:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def without_torch(environment: MutableMapping[str, str]) -> None:
    """Let transformers not import torch, which takes it seconds. For a process that needs its tokenizers and configs only; to be
    called before transformers is imported, with the process's own environment. What a person has set stays.

    transformers 5 no longer heeds USE_TORCH. It asks once whether torch is there, and remembers the answer; torch can be imported
    all the same.
    """
    environment.setdefault("USE_TORCH", "0")
    environment.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that there are no models
    if environment["USE_TORCH"] != "0" or "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        importlib.import_module("transformers.utils").is_torch_available()
    finally:
        del sys.modules["torch"]


def without_bars(environment: MutableMapping[str, str]) -> None:
    """No bars of the libraries' own between a run's lines: transformers 5 draws one for each model that it loads."""
    environment.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def cache_argument(model: Any) -> str:
    """The name under which a model's forward takes its cache; empty: it takes none.

    transformers 5.2x calls it `cache` and warns of the old name, which 5.40 no longer takes.
    """
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    takes = inspect.signature(own.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in takes), "")


def checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    transformers 5.2x calls it `activation_checkpointing_enable` and warns of the old name, which 6 no longer has.
    """
    kind = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kind)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)


def plain_floats(value: Any) -> Any:
    """A config.json's values: transformers 5 writes infinities as {"__float__": "Infinity"} and reads it back."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: plain_floats(item) for key, item in value.items()}
    return [plain_floats(item) for item in value] if isinstance(value, list) else value


def hub_transport_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub cannot be reached: OSErrors of its own, and of what carries its requests."""
    found = (importlib.import_module(name) for name in HTTP_LIBRARIES if importlib.util.find_spec(name))
    return (OSError, *(library.HTTPError for library in found))
