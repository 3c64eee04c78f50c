"""The device: tensors that hold a CPU tensor, and torch's own hooks for a back end written in Python."""

from __future__ import annotations

import hashlib
import json
import os
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME = "neuron"
CACHE = "TORCH_NEURONX_NEFF_CACHE_DIR"
aten = torch.ops.aten
BETWEEN_DEVICES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
INDICES_ANYWHERE = {aten.index.Tensor, aten.index_put_.default, aten._unsafe_index.Tensor}
RESHAPED = {aten.squeeze_, aten.unsqueeze_, aten.t_, aten.transpose_, aten.resize_, aten.as_strided_, aten.set_}
"""In-place operators that change sizes: a wrapper could not follow."""


class State:
    """What this process has done with the device."""

    is_used = False
    index = int(os.environ.get("LOCAL_RANK", "0"))
    operators: ClassVar[dict[str, int]] = {}
    """Distinct (operator, shapes, types): each is a compilation on the real device. Value: how often it ran."""
    report = Path(os.environ["STAND_IN_REPORT"]) if "STAND_IN_REPORT" in os.environ else None
    """Gets a line for each of them: [Unix time, key]."""
    cache = Path(os.environ[CACHE]) if CACHE in os.environ else None


def use() -> None:
    """The first use of the runtime: from now on no process group can be made."""
    State.is_used = True


class NeuronTensor(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> NeuronTensor:
        use()
        made: NeuronTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0), requires_grad=False,  # autograd takes a Python back end for one device
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"NeuronTensor({self.held!r})"

    def data_ptr(self) -> int:
        raise RuntimeError("a stand-in's tensor has no address of its own")


def on_neuron(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == NAME


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator, on the CPU tensors that its arguments hold; new tensors land on the device unless another is named."""
    flat, shape = tree_flatten((args, kwargs))
    wrappers = [value for value in flat if isinstance(value, NeuronTensor)]
    target = kwargs.get("device")
    if target is not None and on_neuron(target) and target.index not in (None, 0, State.index):
        raise RuntimeError(f"only core {State.index} belongs to this process, asked for {target}")
    require_one_device(func, flat, wrappers)
    count(func, args, kwargs)
    if func.overloadpacket in RESHAPED and wrappers:
        raise NotImplementedError(f"{func} on the stand-in")
    plain = [
        value.held if isinstance(value, NeuronTensor) else torch.device("cpu") if on_neuron(value) else value
        for value in flat
    ]
    given, named = tree_unflatten(plain, shape)
    found = dropout(func, given, named)
    if found is None:
        found = func(*given, **named)
    lands = on_neuron(target) if target is not None else bool(wrappers)
    if not lands:
        return found
    known = {id(wrapper.held): wrapper for wrapper in wrappers}

    def land(out: Any) -> Any:
        if not isinstance(out, torch.Tensor):
            return out
        return known[id(out)] if id(out) in known else NeuronTensor(out)

    return tree_map(land, found)


def require_one_device(func: Any, flat: Sequence[Any], wrappers: Sequence[NeuronTensor]) -> None:
    if not wrappers or func in BETWEEN_DEVICES or func in INDICES_ANYWHERE:
        return
    strangers = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, NeuronTensor)]
    if any(value.dim() for value in strangers):
        raise RuntimeError(f"Expected all tensors to be on the same device, neuron:{State.index} and cpu, in {func}")


def count(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """As the real one's cache: by operator, shapes, types and numbers; those that are operands become tensors there."""
    declared = {argument.name: argument.type for argument in func._schema.arguments}
    given = {**dict(zip(declared, args, strict=False)), **kwargs}
    key = f"{func}({', '.join(describe(value, str(declared.get(name))) for name, value in given.items())})"
    if key not in State.operators:
        compile_(key)
    State.operators[key] = State.operators.get(key, 0) + 1


def compile_(key: str) -> None:
    """A file `ab/cd/<hash>.neff` in the cache, if that is named and lacks it; a line in the report."""
    if State.cache:
        digest = hashlib.sha256(key.encode()).hexdigest()
        file = State.cache / digest[:2] / digest[2:4] / f"{digest}.neff"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    if State.report:
        with State.report.open("a") as report:
            report.write(json.dumps([time.time(), key]) + "\n")


def describe(value: Any, kind: str) -> str:
    """An argument as far as a compiled graph depends on it. `kind`: its type in the operator's schema."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)}{value.dtype}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(describe(part, kind) for part in value)}]"
    is_operand = isinstance(value, float) or kind in ("Tensor", "number", "Optional[number]")
    return type(value).__name__ if is_operand else str(value)


def dropout(func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """As the CPU does it, whose generator the beta uses too: devices take a fused operator, the CPU does not."""
    if func is aten.native_dropout.default:
        source, p = args[0], args[1]
        noise = torch.empty_like(source).bernoulli_(1 - p).div_(1 - p)
        return source * noise, noise != 0
    if func is aten.native_dropout_backward.default:
        gradient, mask, scale = args
        return gradient * mask.to(gradient.dtype).div_(1 / scale)
    return None


class Stream:
    """There is one, and everything in it is done at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None: ...
    def wait_event(self, event: object) -> None: ...
    def wait_stream(self, stream: object) -> None: ...
    def record_event(self, event: object = None) -> Event:
        return Event()

    def synchronize(self) -> None: ...


class Event:
    """Has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, stream: object = None) -> Event:
        return self

    def wait(self, stream: object = None) -> None: ...
    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


def make_module() -> Any:
    """`torch.neuron`."""
    module = types.ModuleType("torch.neuron")

    def set_device(device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index or 0
        if index != State.index:
            raise RuntimeError(f"only core {State.index} belongs to this process, got {index}")
        use()

    values: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: State.is_used,
        "init": use,
        "device_count": lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "current_device": lambda: State.index,
        "set_device": set_device,
        "_is_in_bad_fork": lambda: False,
        "manual_seed": lambda seed: None,  # masks come from the CPU's generator
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "is_bf16_supported": lambda: True,
        "get_amp_supported_dtype": lambda: [torch.float32, torch.float16, torch.bfloat16],
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "get_device_name": lambda device=None: "stand-in",
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: stream,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "set_stream": lambda stream: None,
    }
    for name, value in values.items():
        setattr(module, name, value)
    return module


class Guard(torch._C._acc.DeviceGuard):  # type: ignore[misc]
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


def fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Operators that make tensors from nothing."""
    return run(func, args, kwargs)


LIBRARIES: list[Any] = []
"""Registrations last as long as these."""


def register() -> None:
    """Make the device known to torch; nothing is used yet."""
    module = make_module()
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, module, device_guard=Guard())
    torch.accelerator.set_device_index = module.set_device  # the Python back end has no such hook
    library = torch.library.Library("_", "IMPL")
    library.fallback(fallback, "PrivateUse1")
    LIBRARIES.append(library)
